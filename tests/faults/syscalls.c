/* Preloaded: counts the calls that change files below a folder, and at the n-th of them kills the process group, or says
 * that the disk is full from then on. What the C library does within itself (stdio) is not seen; Python, SQLite and
 * ONNX Runtime call the functions below.
 *
 * The file named by FAULTS_STATE is mapped by all processes of a run, and by whoever drives them:
 * see `struct state` and shim.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct state {
    int64_t armed;   /* 0: nothing is counted. */
    int64_t count;   /* Calls so far. */
    int64_t at;      /* The call at which it happens; 0: never. */
    int64_t error;   /* 0: kill; else this errno, from that call on, for all that takes room. */
    char what[64];   /* The call at which it happened. */
    char path[512];
    char root[512];  /* The folder. */
};

static struct state *state;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("FAULTS_STATE");
    int descriptor = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED) state = mapped;
}

static int is_below(int folder, const char *path) {
    char whole[PATH_MAX];
    if (path == NULL || path[0] != '/') {
        char link[64];
        if (path == NULL || folder != AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        else
            snprintf(link, sizeof link, "/proc/self/cwd");
        ssize_t length = readlink(link, whole, sizeof whole - 1);
        if (length < 0) return 0;
        whole[length] = 0;
        path = whole;
    }
    return strncmp(path, state->root, strlen(state->root)) == 0;
}

/* Whether the call must fail (errno is set); does not return where the process is killed. `part` is what a write that is
 * killed gets done. */
static int fails(const char *what, int folder, const char *path, int takes_room, int descriptor, const void *data,
                 size_t part) {
    if (state == NULL || !state->armed || !is_below(folder, path)) return 0;
    int before = errno;
    int64_t number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    if (state->at == 0 || number < state->at) {
        errno = before;
        return 0;
    }
    if (number == state->at) {
        snprintf(state->what, sizeof state->what, "%s", what);
        snprintf(state->path, sizeof state->path, "%s", path ? path : "");
    }
    if (state->error == 0) {
        if (part > 0) {
            ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
            if (real(descriptor, data, part) < 0) part = 0;
        }
        kill(0, SIGKILL);
        for (;;) pause();
    }
    errno = takes_room ? (int)state->error : before;
    return takes_room;
}

#define TAKES (O_CREAT | O_TRUNC | __O_TMPFILE)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                    \
    int name(const char *path, int flags, ...) {                                                      \
        va_list rest;                                                                                 \
        va_start(rest, flags);                                                                        \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                     \
        va_end(rest);                                                                                 \
        if ((flags & TAKES) && fails(#name, AT_FDCWD, path, flags & (O_CREAT | __O_TMPFILE), -1, NULL, 0)) return -1; \
        return REAL(name)(path, flags, mode);                                                         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                  \
    int name(int folder, const char *path, int flags, ...) {                                          \
        va_list rest;                                                                                 \
        va_start(rest, flags);                                                                        \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                     \
        va_end(rest);                                                                                 \
        if ((flags & TAKES) && fails(#name, folder, path, flags & (O_CREAT | __O_TMPFILE), -1, NULL, 0)) return -1; \
        return REAL(name)(folder, path, flags, mode);                                                 \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void *data, size_t size) {
    if (fails("write", descriptor, NULL, 1, descriptor, data, size / 2)) return -1;
    return REAL(write)(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    if (fails("pwrite", descriptor, NULL, 1, -1, NULL, 0)) return -1;
    return REAL(pwrite)(descriptor, data, size, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    if (fails("pwrite64", descriptor, NULL, 1, -1, NULL, 0)) return -1;
    return REAL(pwrite64)(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    if (fails("writev", descriptor, NULL, 1, -1, NULL, 0)) return -1;
    return REAL(writev)(descriptor, parts, number);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    if (fails("sendfile", out, NULL, 1, -1, NULL, 0)) return -1;
    ssize_t (*real)(int, int, off_t *, size_t) = dlsym(RTLD_NEXT, "sendfile");
    return real(out, in, offset, size);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) {
    if (fails("sendfile64", out, NULL, 1, -1, NULL, 0)) return -1;
    ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64");
    return real(out, in, offset, size);
}

int posix_fallocate(int descriptor, off_t offset, off_t size) {
    if (fails("posix_fallocate", descriptor, NULL, 1, -1, NULL, 0)) return errno;
    return REAL(posix_fallocate)(descriptor, offset, size);
}

int posix_fallocate64(int descriptor, off64_t offset, off64_t size) {
    if (fails("posix_fallocate64", descriptor, NULL, 1, -1, NULL, 0)) return errno;
    return REAL(posix_fallocate64)(descriptor, offset, size);
}

int rename(const char *from, const char *to) {
    if (fails("rename", AT_FDCWD, to, 0, -1, NULL, 0)) return -1;
    return REAL(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    if (fails("renameat", to_folder, to, 0, -1, NULL, 0)) return -1;
    return REAL(renameat)(from_folder, from, to_folder, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    if (fails("renameat2", to_folder, to, 0, -1, NULL, 0)) return -1;
    return REAL(renameat2)(from_folder, from, to_folder, to, flags);
}

int link(const char *from, const char *to) {
    if (fails("link", AT_FDCWD, to, 1, -1, NULL, 0)) return -1;
    return REAL(link)(from, to);
}

int symlink(const char *from, const char *to) {
    if (fails("symlink", AT_FDCWD, to, 1, -1, NULL, 0)) return -1;
    return REAL(symlink)(from, to);
}

int unlink(const char *path) {
    if (fails("unlink", AT_FDCWD, path, 0, -1, NULL, 0)) return -1;
    return REAL(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    if (fails("unlinkat", folder, path, 0, -1, NULL, 0)) return -1;
    return REAL(unlinkat)(folder, path, flags);
}

int rmdir(const char *path) {
    if (fails("rmdir", AT_FDCWD, path, 0, -1, NULL, 0)) return -1;
    return REAL(rmdir)(path);
}

int mkdir(const char *path, mode_t mode) {
    if (fails("mkdir", AT_FDCWD, path, 1, -1, NULL, 0)) return -1;
    return REAL(mkdir)(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    if (fails("mkdirat", folder, path, 1, -1, NULL, 0)) return -1;
    return REAL(mkdirat)(folder, path, mode);
}

int chmod(const char *path, mode_t mode) {
    if (fails("chmod", AT_FDCWD, path, 0, -1, NULL, 0)) return -1;
    return REAL(chmod)(path, mode);
}

int fsync(int descriptor) {
    if (fails("fsync", descriptor, NULL, 0, -1, NULL, 0)) return -1;
    return REAL(fsync)(descriptor);
}

int fdatasync(int descriptor) {
    if (fails("fdatasync", descriptor, NULL, 0, -1, NULL, 0)) return -1;
    return REAL(fdatasync)(descriptor);
}

int ftruncate64(int descriptor, off64_t size) {
    if (fails("ftruncate64", descriptor, NULL, 0, -1, NULL, 0)) return -1;
    return REAL(ftruncate64)(descriptor, size);
}
