/* Sits between a process and the C library, by LD_PRELOAD: notes, fails or kills at each change of files under a folder.

   CLIPQL_FAULT_ROOT names the folder. fault_log(path) begins to note every change there, with its data, in order (path
   NULL ends it); fault_arm(n, number, sticky) makes the first write, sync or creation from the n-th change on fail
   with this error number, and all after it where sticky (a full disk still lets files be renamed and removed); number -1
   kills the process instead.
   fault_count() tells how many changes came since. So ClickHouse's own writes are seen as ours are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int log_to = -1, armed, sticky, number;
static long count, at, failed;

/* the C library's syscall(): ours below would note what we do ourselves */
static long (*real)(long, ...);
static __attribute__((constructor)) void find(void) { real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall"); }
#define SYS(...) (real(__VA_ARGS__))

static void setup(void) {
    const char *given = getenv("CLIPQL_FAULT_ROOT");
    if (!root_length && given && realpath(given, root)) root_length = strlen(root);
}

static ssize_t put(int fd, const void *data, size_t size) { /* not through our own write */
    const char *from = data;
    while (size) {
        ssize_t done = SYS(SYS_write, fd, from, size);
        if (done <= 0) return -1;
        from += done, size -= done;
    }
    return 0;
}

/* The name under the root of a path, or NULL where it lies elsewhere. */
static const char *inside(const char *path) {
    setup();
    if (!root_length || strncmp(path, root, root_length) || path[root_length] != '/') return NULL;
    return path + root_length + 1;
}

static const char *resolve(int folder, const char *path, char *out) {
    if (!path) return NULL;
    char base[PATH_MAX] = "", whole[PATH_MAX * 2], parent[PATH_MAX * 2];
    if (path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return NULL;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return NULL;
            base[n] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    } else snprintf(whole, sizeof whole, "%s", path);
    size_t n = strlen(whole);
    while (n > 1 && whole[n - 1] == '/') whole[--n] = 0;
    char *slash = strrchr(whole, '/');
    if (!slash) return NULL;
    snprintf(parent, sizeof parent, "%.*s", (int)(slash - whole), whole);
    char real[PATH_MAX];
    if (!realpath(parent[0] ? parent : "/", real)) return NULL;
    snprintf(out, PATH_MAX * 2, "%s/%s", real, slash + 1);
    return inside(out);
}

static const char *of_handle(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n < 0) return NULL;
    out[n] = 0;
    return inside(out);
}

static void note(char kind, const char *one, const char *two, uint64_t offset, const void *data, uint64_t size) {
    if (log_to < 0) return;
    uint32_t a = one ? strlen(one) : 0, b = two ? strlen(two) : 0;
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &a, 4), memcpy(head + 5, &b, 4), memcpy(head + 9, &offset, 8), memcpy(head + 17, &size, 8);
    put(log_to, head, sizeof head), put(log_to, one, a), put(log_to, two, b), put(log_to, data, size);
}

static void note_content(int fd, const char *name) {
    struct stat found;
    if (log_to < 0 || fstat(fd, &found)) return;
    if (!S_ISREG(found.st_mode)) {
        note('d', name, NULL, 0, NULL, 0);
        return;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = SYS(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
    char *data = malloc(found.st_size + 1);
    ssize_t got = 0, n;
    while (again >= 0 && got < found.st_size && (n = pread(again, data + got, found.st_size - got, got)) > 0) got += n;
    note('s', name, NULL, 0, data, got);
    free(data);
    if (again >= 0) SYS(SYS_close, again);
}

/* Whether this change shall fail; takes the turn, which `done` gives back. */
static int fails(int takes_room) {
    pthread_mutex_lock(&turn);
    count++;
    if (armed && count >= at && number < 0) SYS(SYS_kill, getpid(), SIGKILL);
    if (!armed || count < at || (failed && !sticky) || !takes_room) return 0;
    failed++;
    errno = number;
    pthread_mutex_unlock(&turn);
    return 1;
}

static void done(void) {
    int kept = errno;
    pthread_mutex_unlock(&turn);
    errno = kept;
}

void fault_log(const char *path) {
    pthread_mutex_lock(&turn);
    if (log_to >= 0) SYS(SYS_close, log_to);
    log_to = path ? SYS(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    count = 0;
    pthread_mutex_unlock(&turn);
}

void fault_arm(long n, int error, int stays) {
    pthread_mutex_lock(&turn);
    count = 0, failed = 0, at = n, number = error, sticky = stays, armed = n > 0;
    pthread_mutex_unlock(&turn);
}

long fault_count(void) { return count; }
long fault_failed(void) { return failed; }

static int opened(int folder, const char *path, int flags, mode_t mode) {
    char place[PATH_MAX * 2];
    const char *name = (flags & (O_CREAT | O_TRUNC)) && !(flags & O_DIRECTORY) ? resolve(folder, path, place) : NULL;
    if (!name) return SYS(SYS_openat, folder, path, flags, mode);
    struct stat before;
    int there = !SYS(SYS_newfstatat, folder, path, &before, 0);
    if (there && !(flags & O_TRUNC)) return SYS(SYS_openat, folder, path, flags, mode);
    if (fails(1)) return -1;
    int fd = SYS(SYS_openat, folder, path, flags, mode);
    if (fd >= 0) note(there ? 't' : 'c', name, NULL, 0, NULL, 0);
    done();
    return fd;
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, int); va_end(a); }
int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }

static ssize_t written(int fd, const struct iovec *parts, int n, off_t offset) {
    char place[PATH_MAX * 2];
    const char *name = of_handle(fd, place);
    if (!name) return offset < 0 ? SYS(SYS_writev, fd, parts, n) : SYS(SYS_pwritev, fd, parts, n, offset, 0);
    if (fails(1)) return -1;
    ssize_t size = offset < 0 ? SYS(SYS_writev, fd, parts, n) : SYS(SYS_pwritev, fd, parts, n, offset, 0);
    off_t from = offset < 0 ? lseek(fd, 0, SEEK_CUR) - size : offset;
    for (ssize_t i = 0, left = size; i < n && left > 0; i++) {
        size_t piece = (size_t)left < parts[i].iov_len ? (size_t)left : parts[i].iov_len;
        note('w', name, NULL, from, parts[i].iov_base, piece);
        from += piece, left -= piece;
    }
    done();
    return size;
}
ssize_t write(int fd, const void *data, size_t size) {
    struct iovec one = {(void *)data, size};
    char place[PATH_MAX * 2];
    if (!of_handle(fd, place)) return SYS(SYS_write, fd, data, size);
    return written(fd, &one, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    struct iovec one = {(void *)data, size};
    return written(fd, &one, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }
ssize_t writev(int fd, const struct iovec *parts, int n) { return written(fd, parts, n, -1); }

static int synced(int fd, long call) {
    char place[PATH_MAX * 2];
    const char *name = of_handle(fd, place);
    if (!name && !inside(place)) return SYS(call, fd);
    if (fails(1)) return -1;
    int result = SYS(call, fd);
    if (!result) note_content(fd, name);
    done();
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int moved(char kind, int from, const char *old, int to, const char *new, int flags) {
    char a[PATH_MAX * 2], b[PATH_MAX * 2];
    const char *one = resolve(from, old, a), *two = resolve(to, new, b);
    if (!one && !two)
        return kind == 'l' ? SYS(SYS_linkat, from, old, to, new, flags) : SYS(SYS_renameat2, from, old, to, new, flags);
    if (fails(kind == 'l')) return -1; /* a full disk still renames */
    int result = kind == 'l' ? SYS(SYS_linkat, from, old, to, new, flags) : SYS(SYS_renameat2, from, old, to, new, flags);
    if (!result) note(kind == 'r' && flags & 2 ? 'x' : kind, one, two, 0, NULL, 0);
    done();
    return result;
}
int rename(const char *old, const char *new) { return moved('r', AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int a, const char *old, int b, const char *new) { return moved('r', a, old, b, new, 0); }
int renameat2(int a, const char *old, int b, const char *new, unsigned f) { return moved('r', a, old, b, new, f); }
int link(const char *old, const char *new) { return moved('l', AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int a, const char *old, int b, const char *new, int f) { return moved('l', a, old, b, new, f); }

long syscall(long which, ...) {
    va_list given;
    va_start(given, which);
    long a = va_arg(given, long), b = va_arg(given, long), c = va_arg(given, long), d = va_arg(given, long),
         e = va_arg(given, long), f = va_arg(given, long);
    va_end(given);
    return which == SYS_renameat2 ? moved('r', a, (const char *)b, c, (const char *)d, e) : SYS(which, a, b, c, d, e, f);
}

static int removed(int folder, const char *path, int flags) {
    char place[PATH_MAX * 2];
    const char *name = resolve(folder, path, place);
    if (!name) return SYS(SYS_unlinkat, folder, path, flags);
    if (fails(0)) return -1;
    int result = SYS(SYS_unlinkat, folder, path, flags);
    if (!result) note(flags & AT_REMOVEDIR ? 'R' : 'u', name, NULL, 0, NULL, 0);
    done();
    return result;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int result = removed(AT_FDCWD, path, 0);
    return result && (errno == EISDIR || errno == EPERM) ? removed(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

static int made(int folder, const char *path, mode_t mode) {
    char place[PATH_MAX * 2];
    const char *name = resolve(folder, path, place);
    if (!name) return SYS(SYS_mkdirat, folder, path, mode);
    if (fails(1)) return -1;
    int result = SYS(SYS_mkdirat, folder, path, mode);
    if (!result) note('m', name, NULL, 0, NULL, 0);
    done();
    return result;
}
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return made(folder, path, mode); }

int symlink(const char *target, const char *path) {
    char place[PATH_MAX * 2];
    const char *name = resolve(AT_FDCWD, path, place);
    if (!name) return SYS(SYS_symlinkat, target, AT_FDCWD, path);
    if (fails(1)) return -1;
    int result = SYS(SYS_symlinkat, target, AT_FDCWD, path);
    if (!result) note('y', name, target, 0, NULL, 0);
    done();
    return result;
}

int ftruncate(int fd, off_t size) {
    char place[PATH_MAX * 2];
    const char *name = of_handle(fd, place);
    if (!name) return SYS(SYS_ftruncate, fd, size);
    if (fails(1)) return -1;
    int result = SYS(SYS_ftruncate, fd, size);
    if (!result) note('t', name, NULL, size, NULL, 0);
    done();
    return result;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

int posix_fallocate(int fd, off_t offset, off_t size) {
    char place[PATH_MAX * 2];
    const char *name = of_handle(fd, place);
    if (name && fails(1)) return errno;
    int result = SYS(SYS_fallocate, fd, 0, offset, size) ? errno : 0;
    if (name) {
        if (!result) note('a', name, NULL, offset + size, NULL, 0);
        done();
    }
    return result;
}
int posix_fallocate64(int fd, off_t offset, off_t size) { return posix_fallocate(fd, offset, size); }

/* chDB is loaded so that it finds the C library before us: not so here. */
void *dlopen(const char *path, int flags) {
    void *(*next)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    return next(path, flags & ~RTLD_DEEPBIND);
}
