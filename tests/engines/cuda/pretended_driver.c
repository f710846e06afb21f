/* A driver of CUDA in pretence, with as much as engines/cuda/device.py and engines/cuda/graph.py ask for: device memory is the
   host's, streams run what they are given at once, and time is a count of calls. Captured work is a list of copies.
   Built by test_cuda_graph.py and test_cuda_device.py. The prototypes are those of cuda.h. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { OK, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALIDATED = 901, ILLEGAL_ADDRESS = 700 };
enum { ROOM = 1 << 20, FREE = ROOM, MOST_COPIES = 16 };

static int capturing, graphs, executables, launches, failing;
static size_t used;
static int contexts, ticks;
struct graph { int num_copies; struct { void *to; const void *from; size_t size; } copies[MOST_COPIES]; };
static struct graph *captured;

int fail_at(int step) { failing = step; return OK; }
int state(int which) {
  int all[] = {capturing, graphs, executables, launches, (int)used, contexts};
  return all[which];
}

/* Devices and contexts */
int cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
int cuDriverGetVersion(int *version) { *version = 12080; return OK; }
int cuDeviceGetCount(int *number) { *number = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_VALUE : OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Pretended GPU", (size_t)size); return device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return device; }
static int a_context;
int cuDevicePrimaryCtxRetain(void **context, int device) { contexts++; *context = &a_context; return device; }
int cuDevicePrimaryCtxRelease(int device) { contexts--; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return device; }
int cuCtxPushCurrent_v2(void *context) { return context == &a_context ? OK : INVALID_VALUE; }
int cuCtxPopCurrent_v2(void **context) { if (context) *context = &a_context; return OK; }
int cuCtxGetCurrent(void **context) { *context = &a_context; return OK; }
int cuCtxGetDevice(int *device) { *device = 0; return OK; }
int cuCtxSynchronize(void) { return OK; }

/* Memory: a size stands before each piece. */
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = FREE - used; *total = FREE; return OK; }
int cuMemAlloc_v2(unsigned long long *address, size_t size) {
  if (used + size > FREE) return OUT_OF_MEMORY;
  size_t *piece = malloc(sizeof(size_t) * 2 + size);
  *piece = size;
  used += size;
  *address = (unsigned long long)(piece + 2);
  return OK;
}
int cuMemFree_v2(unsigned long long address) {
  size_t *piece = (size_t *)address - 2;
  used -= *piece;
  free(piece);
  return OK;
}
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
  if (size > ROOM || flags > 7) return OUT_OF_MEMORY;
  return (*memory = calloc(size, 1)) ? OK : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *memory) { free(memory); return OK; }
static int copy(void *to, const void *from, size_t size, void *stream) {
  if (stream != (void *)7) return INVALID_VALUE;
  ticks++;
  if (!capturing) { memcpy(to, from, size); return OK; }
  int last = captured->num_copies;
  if (last == MOST_COPIES) return INVALID_VALUE;
  captured->copies[last].to = to;
  captured->copies[last].from = from;
  captured->copies[last].size = size;
  captured->num_copies++;
  return OK;
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t size, void *stream) {
  return copy((void *)to, from, size, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t size, void *stream) {
  return copy(to, (const void *)from, size, stream);
}

/* Streams and events: there is one stream, 7, that does not wait for the null stream. */
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)7; return flags == 1 ? OK : INVALID_VALUE; }
int cuStreamDestroy_v2(void *stream) { return stream == (void *)7 ? OK : INVALID_VALUE; }
int cuStreamSynchronize(void *stream) { return failing == 5 ? ILLEGAL_ADDRESS : stream == (void *)7 ? OK : INVALID_VALUE; }
int cuEventCreate(void **event, unsigned flags) { return flags ? INVALID_VALUE : (*event = calloc(1, sizeof(int))) ? OK : OUT_OF_MEMORY; }
int cuEventRecord(void *event, void *stream) { *(int *)event = ++ticks; return stream == (void *)7 ? OK : INVALID_VALUE; }
int cuEventElapsedTime(float *ms, void *start, void *end) { *ms = (float)(*(int *)end - *(int *)start); return OK; }
int cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }
int cuEventDestroy_v2(void *event) { free(event); return OK; }

/* Graphs: an executable is a copy of its graph. */
int cuStreamBeginCapture_v2(void *stream, int mode) {
  if (stream != (void *)7 || mode != 1 || failing == 1) return INVALID_VALUE;
  capturing = 1;
  captured = calloc(1, sizeof(struct graph));
  return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
  if (stream != (void *)7 || !capturing) return INVALID_VALUE;
  capturing = 0;
  if (failing == 2) { free(captured); *graph = NULL; return INVALIDATED; }
  graphs++;
  *graph = captured;
  return OK;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  if (graph != captured || flags || failing == 3) return INVALID_VALUE;
  executables++;
  *executable = memcpy(malloc(sizeof(struct graph)), graph, sizeof(struct graph));
  return OK;
}
int cuGraphDestroy(void *graph) { graphs--; free(graph); return OK; }
int cuGraphLaunch(void *executable, void *stream) {
  if (stream != (void *)7 || failing == 4) return INVALID_VALUE;
  struct graph *run = executable;
  for (int i = 0; i < run->num_copies; i++) memcpy(run->copies[i].to, run->copies[i].from, run->copies[i].size);
  launches++;
  return OK;
}
int cuGraphExecDestroy(void *executable) { executables--; free(executable); return OK; }

int cuGetErrorName(int status, const char **name) {
  if (status != INVALIDATED) return INVALID_VALUE;
  *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
  return OK;
}
int cuGetErrorString(int status, const char **words) {
  *words = status == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "an error in pretence";
  return OK;
}
