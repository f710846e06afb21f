/* A driver with as much of CUDA's graphs as engines/cuda_graph.py asks for; it counts, and runs nothing.
   Built by test_cuda_graph.py. The prototypes are those of cuda.h. */
#include <stddef.h>

static int capturing, graphs, executables, launches, failing;
static int a_graph, an_executable;

enum { OK, INVALID_VALUE = 1, INVALIDATED = 901 };

int fail_at(int step) { failing = step; return OK; }
int state(int which) { int all[] = {capturing, graphs, executables, launches}; return all[which]; }

int cuStreamBeginCapture_v2(void *stream, int mode) {
  if (stream != (void *)7 || mode != 1 || failing == 1) return INVALID_VALUE;
  capturing = 1;
  return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
  if (stream != (void *)7 || !capturing) return INVALID_VALUE;
  capturing = 0;
  if (failing == 2) { *graph = NULL; return INVALIDATED; }
  graphs++;
  *graph = &a_graph;
  return OK;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  if (graph != &a_graph || flags || failing == 3) return INVALID_VALUE;
  executables++;
  *executable = &an_executable;
  return OK;
}
int cuGraphDestroy(void *graph) { graphs -= graph == &a_graph; return OK; }
int cuGraphLaunch(void *executable, void *stream) {
  if (executable != &an_executable || stream != (void *)7 || failing == 4) return INVALID_VALUE;
  launches++;
  return OK;
}
int cuGraphExecDestroy(void *executable) { executables -= executable == &an_executable; return OK; }
int cuGetErrorName(int status, const char **name) {
  if (status != INVALIDATED) return INVALID_VALUE;
  *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
  return OK;
}
