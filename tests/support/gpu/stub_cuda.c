/* A double of libcuda.so.1 without a GPU: device memory is files in a folder that its processes
 * share, so that an IPC handle opens in another one; streams are threads that do what is queued
 * some time later, so that a missing synchronisation shows. One loaded copy of the library is one
 * process to it: two copies of the file in one process stand for two. Prototypes are cuda.h's.
 *
 * Device addresses mean nothing to the host: who touches one crashes. What a real device would not
 * forgive is counted (stub_violations) and kept in words (stub_last_violation).
 *
 * Environment: STUB_CUDA_FOLDER (needed), STUB_CUDA_DELAY_US (of each piece of work),
 * STUB_CUDA_DEVICES (2), STUB_CUDA_PEERS (1: devices reach each other), STUB_CUDA_MACHINE.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
typedef struct Context *CUcontext;
typedef struct Stream *CUstream;
typedef struct Event *CUevent;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, PEER_ACCESS_UNSUPPORTED = 217,
    INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700
};
enum { MAPPINGS = 16384, FUNCTIONS = 64, QUEUE = 4096, DEVICES = 8, ALIGNMENT = 512 };
#define FIRST_ADDRESS 0xD000000000000000ull
#define STRIDE 0x0000010000000000ull

/* ---- one lock over everything; `changed` wakes streams */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

struct Context { int device; int retained; };
struct Mapping {
    CUdeviceptr base;  /* 0 on the host */
    char *host;
    size_t size;
    int device, references, is_import, is_host;
    char name[48];
};
struct Work { int kind; char *to, *from; size_t bytes; CUevent event; void (*call)(void *); void *with; struct Mapping *maps[2]; };
struct Stream { pthread_t thread; struct Work *queue; size_t head, tail; int is_busy, is_closed; CUcontext context; };
struct Event { long pending; int is_closed; };

static struct Context contexts[DEVICES];
static struct Mapping mappings[MAPPINGS];
static int num_mappings, num_names, is_ready, sticky, is_held, num_violations;
static long live_streams, live_events, live_pinned;
static int num_devices = 2, peers = 1;
static long delay_us;
static char folder[512], machine[17] = "stub-machine";
static char last_violation[256];
static __thread CUcontext current;

static struct { char name[48]; long calls, fail_at; int code; } functions[FUNCTIONS];

static void violate(const char *text)
{
    num_violations++;
    snprintf(last_violation, sizeof last_violation, "%s", text);
}

static int function_of(const char *name)
{
    int i;
    for (i = 0; i < FUNCTIONS - 1 && functions[i].name[0]; i++)
        if (!strcmp(functions[i].name, name)) return i;
    snprintf(functions[i].name, sizeof functions[i].name, "%s", name);
    return i;
}

/* Counts a call; what it was told to fail with, or 0. Under the lock. */
static int counted(const char *name)
{
    int i = function_of(name);
    functions[i].calls++;
    return functions[i].calls == functions[i].fail_at ? functions[i].code : 0;
}

static int begin(const char *name, int needs_context)
{
    pthread_mutex_lock(&lock);
    int code = counted(name);
    if (code) return code;
    if (!is_ready) return NOT_INITIALIZED;
    if (needs_context && (!current || !current->retained)) return INVALID_CONTEXT;
    return needs_context && sticky ? sticky : 0;
}

static CUresult finish(int code)
{
    pthread_mutex_unlock(&lock);
    return code;
}
#define BEGIN(context) int code = begin(__func__, context); if (code) return finish(code)

static struct Mapping *mapping_of(CUdeviceptr address, size_t bytes)
{
    for (int i = num_mappings - 1; i >= 0; i--) {
        struct Mapping *m = &mappings[i];
        CUdeviceptr base = m->is_host ? (CUdeviceptr)m->host : m->base;
        if (!m->references && m->is_host) continue;
        if (address >= base && address < base + m->size) {
            if (!m->references) { violate("use of device memory after it was closed"); return NULL; }
            return address - base + bytes <= m->size ? m : NULL;
        }
    }
    return NULL;
}

static struct Mapping *new_mapping(void)
{
    if (num_mappings == MAPPINGS) return NULL;
    struct Mapping *m = &mappings[num_mappings];
    memset(m, 0, sizeof *m);
    m->references = 1;
    m->base = FIRST_ADDRESS + STRIDE * (CUdeviceptr)num_mappings++;
    return m;
}

static int map_file(struct Mapping *m, int flags)
{
    char path[600];
    struct stat status;
    snprintf(path, sizeof path, "%s/%s", folder, m->name);
    int fd = open(path, flags, 0600);
    if (fd < 0) return INVALID_HANDLE;
    if (flags & O_CREAT && ftruncate(fd, (off_t)m->size)) { close(fd); return OUT_OF_MEMORY; }
    if (fstat(fd, &status)) { close(fd); return INVALID_HANDLE; }
    m->size = (size_t)status.st_size;
    m->host = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return m->host == MAP_FAILED ? OUT_OF_MEMORY : SUCCESS;
}

/* ---- device and context */
CUresult cuInit(unsigned flags)
{
    pthread_mutex_lock(&lock);
    int code = counted(__func__);
    const char *text = getenv("STUB_CUDA_FOLDER");
    if (code || flags || !text) return finish(code ? code : INVALID_VALUE);
    snprintf(folder, sizeof folder, "%s", text);
    if ((text = getenv("STUB_CUDA_DELAY_US"))) delay_us = atol(text);
    if ((text = getenv("STUB_CUDA_DEVICES"))) num_devices = atoi(text);
    if ((text = getenv("STUB_CUDA_PEERS"))) peers = atoi(text);
    if ((text = getenv("STUB_CUDA_MACHINE"))) snprintf(machine, sizeof machine, "%s", text);
    if (num_devices > DEVICES) num_devices = DEVICES;
    is_ready = num_devices > 0;
    return finish(is_ready ? SUCCESS : NO_DEVICE);
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    static const struct { int code; const char *name; } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"},
        {100, "CUDA_ERROR_NO_DEVICE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
        {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"}, {400, "CUDA_ERROR_INVALID_HANDLE"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {999, "CUDA_ERROR_UNKNOWN"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == error) { *text = names[i].name; return SUCCESS; }
    return INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *count) { BEGIN(0); *count = num_devices; return finish(SUCCESS); }

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    BEGIN(0);
    if (ordinal < 0 || ordinal >= num_devices) return finish(INVALID_DEVICE);
    /* Not the ordinal itself: it is another type. */
    *device = ordinal + 40;
    return finish(SUCCESS);
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    BEGIN(0);
    memset(uuid, 0, sizeof *uuid);
    memcpy(uuid->bytes, machine, strnlen(machine, 15));
    uuid->bytes[15] = (char)(device - 40);
    return finish(SUCCESS);
}

CUresult cuDeviceCanAccessPeer(int *answer, CUdevice device, CUdevice other)
{
    BEGIN(0);
    *answer = device != other && peers;
    return finish(SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    BEGIN(0);
    if (device < 40 || device >= 40 + num_devices) return finish(INVALID_DEVICE);
    contexts[device - 40].device = device - 40;
    contexts[device - 40].retained++;
    *context = &contexts[device - 40];
    return finish(SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    BEGIN(0);
    if (!contexts[device - 40].retained) return finish(INVALID_CONTEXT);
    contexts[device - 40].retained--;
    return finish(SUCCESS);
}

CUresult cuCtxSetCurrent(CUcontext context) { BEGIN(0); current = context; return finish(SUCCESS); }

/* ---- memory */
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    BEGIN(1);
    struct Mapping *m = new_mapping();
    if (!m || !bytes) return finish(OUT_OF_MEMORY);
    m->size = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    m->device = current->device;
    snprintf(m->name, sizeof m->name, "%d-%lx-%d", getpid(), (unsigned long)(uintptr_t)&lock >> 12, num_names++);
    code = map_file(m, O_RDWR | O_CREAT | O_EXCL);
    if (code) m->references = 0;
    *address = m->base;
    return finish(code);
}

CUresult cuMemFree_v2(CUdeviceptr address)
{
    char path[600];
    BEGIN(1);
    struct Mapping *m = mapping_of(address, 0);
    if (!m || m->is_import || m->is_host || m->base != address) return finish(INVALID_VALUE);
    m->references = 0;
    snprintf(path, sizeof path, "%s/%s", folder, m->name);
    unlink(path);
    return finish(SUCCESS);
}

CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags)
{
    BEGIN(1);
    (void)flags;
    struct Mapping *m = new_mapping();
    if (!m) return finish(OUT_OF_MEMORY);
    m->is_host = 1;
    m->size = bytes;
    m->host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    live_pinned++;
    *pointer = m->host;
    return finish(SUCCESS);
}

static int is_queued(struct Mapping *m);

CUresult cuMemFreeHost(void *pointer)
{
    BEGIN(1);
    for (int i = 0; i < num_mappings; i++) {
        struct Mapping *m = &mappings[i];
        if (!m->is_host || !m->references || m->host != pointer) continue;
        if (is_queued(m)) violate("pinned memory freed while a copy of it was queued");
        m->references = 0;
        /* Kept, but out of reach: who still looks at it crashes. */
        mprotect(m->host, m->size, PROT_NONE);
        live_pinned--;
        return finish(SUCCESS);
    }
    return finish(INVALID_VALUE);
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
    BEGIN(1);
    struct Mapping *m = mapping_of(address, 0);
    if (!m || m->is_host) return finish(INVALID_VALUE);
    *base = m->base;
    *size = m->size;
    return finish(SUCCESS);
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address)
{
    BEGIN(1);
    struct Mapping *m = mapping_of(address, 0);
    if (!m || m->is_import || m->is_host || m->base != address) return finish(INVALID_VALUE);
    memset(handle, 0, sizeof *handle);
    memcpy(handle->reserved, "STUB", 4);
    handle->reserved[4] = (char)m->device;
    memcpy(handle->reserved + 8, m->name, sizeof m->name);
    return finish(SUCCESS);
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags)
{
    BEGIN(1);
    if (flags != 1) return finish(INVALID_VALUE);
    handle.reserved[55] = 0;
    const char *name = handle.reserved + 8;
    int device = handle.reserved[4];
    if (memcmp(handle.reserved, "STUB", 4) || !*name || strchr(name, '/') || *name == '.' || device < 0)
        return finish(INVALID_HANDLE);
    for (int i = 0; i < num_mappings; i++) {
        struct Mapping *m = &mappings[i];
        if (!m->references || strcmp(m->name, name)) continue;
        if (!m->is_import) return finish(INVALID_CONTEXT);
        m->references++;
        *address = m->base;
        return finish(SUCCESS);
    }
    if (device != current->device && !peers) return finish(PEER_ACCESS_UNSUPPORTED);
    struct Mapping *m = new_mapping();
    if (!m) return finish(OUT_OF_MEMORY);
    m->is_import = 1;
    m->device = device;
    memcpy(m->name, name, sizeof m->name);
    code = map_file(m, O_RDWR);
    if (code) m->references = 0;
    *address = m->base;
    return finish(code);
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address)
{
    BEGIN(1);
    struct Mapping *m = mapping_of(address, 0);
    if (!m || !m->is_import || m->base != address) { violate("close of what is not open"); return finish(INVALID_VALUE); }
    if (m->references == 1 && is_queued(m)) violate("handle closed while a copy of it was queued");
    m->references--;
    return finish(SUCCESS);
}

/* ---- streams */
enum { COPY, RECORD, CALL };
static CUstream all_streams[MAPPINGS];
static int num_streams;

static int is_queued(struct Mapping *m)
{
    for (int i = 0; i < num_streams; i++) {
        CUstream s = all_streams[i];
        for (size_t at = s->head; at < s->tail; at++) {
            struct Work *w = &s->queue[at % QUEUE];
            if (w->maps[0] == m || w->maps[1] == m) return 1;
        }
    }
    return 0;
}

static void perform(struct Work *w)
{
    long pause = delay_us;
    int code = counted("stub_execute");
    pthread_mutex_unlock(&lock);
    if (pause) usleep((useconds_t)pause);
    if (!code && !sticky && w->kind == COPY) memcpy(w->to, w->from, w->bytes);
    if (w->kind == CALL) w->call(w->with);
    pthread_mutex_lock(&lock);
    if (code && !sticky) sticky = code;
    if (w->kind == RECORD) w->event->pending--;
}

static void *run(void *argument)
{
    CUstream s = argument;
    pthread_mutex_lock(&lock);
    while (!s->is_closed || s->head < s->tail) {
        if (s->head == s->tail || is_held) { pthread_cond_wait(&changed, &lock); continue; }
        s->is_busy = 1;
        struct Work *w = &s->queue[s->head % QUEUE];
        perform(w);
        s->head++;
        s->is_busy = 0;
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    BEGIN(1);
    if (flags > 1 || num_streams == MAPPINGS) return finish(INVALID_VALUE);
    CUstream s = calloc(1, sizeof *s);
    s->queue = calloc(QUEUE, sizeof *s->queue);
    s->context = current;
    all_streams[num_streams++] = s;
    live_streams++;
    pthread_create(&s->thread, NULL, run, s);
    pthread_detach(s->thread);
    *stream = s;
    return finish(SUCCESS);
}

CUresult cuStreamQuery(CUstream s)
{
    BEGIN(1);
    if (s->is_closed) { violate("query of a stream after it was destroyed"); return finish(INVALID_HANDLE); }
    return finish(s->head < s->tail ? NOT_READY : SUCCESS);
}

CUresult cuStreamDestroy_v2(CUstream s)
{
    BEGIN(1);
    if (s->is_closed) { violate("stream destroyed twice"); return finish(INVALID_HANDLE); }
    if (s->head < s->tail) violate("stream destroyed with work in it");
    s->is_closed = 1;
    live_streams--;
    pthread_cond_broadcast(&changed);
    return finish(SUCCESS);
}

/* Under the lock. */
static int enqueue(CUstream s, struct Work work)
{
    if (!s || s->is_closed) { violate("work for a stream after it was destroyed"); return INVALID_HANDLE; }
    if (s->context != current) return INVALID_CONTEXT;
    if (s->tail - s->head == QUEUE) return OUT_OF_MEMORY;
    s->queue[s->tail++ % QUEUE] = work;
    pthread_cond_broadcast(&changed);
    return SUCCESS;
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s)
{
    BEGIN(1);
    struct Mapping *target = mapping_of(to, bytes), *source = mapping_of(from, bytes);
    if (!target || !source || !bytes) { violate("copy outside of known memory"); return finish(INVALID_VALUE); }
    char *into = target->host + (to - (target->is_host ? (CUdeviceptr)target->host : target->base));
    char *out = source->host + (from - (source->is_host ? (CUdeviceptr)source->host : source->base));
    if (target->is_import) violate("a copy into a peer's memory");
    struct Work work = {COPY, into, out, bytes, NULL, NULL, NULL, {target, source}};
    return finish(enqueue(s, work));
}

CUresult cuLaunchHostFunc(CUstream s, void (*call)(void *), void *with)
{
    BEGIN(1);
    struct Work work = {CALL, NULL, NULL, 0, NULL, call, with, {NULL, NULL}};
    return finish(enqueue(s, work));
}

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    BEGIN(1);
    (void)flags;
    *event = calloc(1, sizeof **event);
    live_events++;
    return finish(SUCCESS);
}

CUresult cuEventRecord(CUevent event, CUstream s)
{
    BEGIN(1);
    struct Work work = {RECORD, NULL, NULL, 0, event, NULL, NULL, {NULL, NULL}};
    code = enqueue(s, work);
    event->pending += !code;
    return finish(code);
}

CUresult cuEventQuery(CUevent event)
{
    BEGIN(1);
    if (event->is_closed) { violate("query of an event after it was destroyed"); return finish(INVALID_HANDLE); }
    return finish(event->pending ? NOT_READY : SUCCESS);
}

CUresult cuEventDestroy_v2(CUevent event)
{
    BEGIN(1);
    if (event->is_closed) { violate("event destroyed twice"); return finish(INVALID_HANDLE); }
    event->is_closed = 1;
    live_events--;
    return finish(SUCCESS);
}

/* ---- for tests: `gpu.cuda` calls these */

/* The n-th call from now on (1: the next) of a function returns a code, once. 0: none does.
 * "stub_execute" is a piece of work of a stream: its failure sticks to the device. */
void stub_fail(const char *name, long nth, int code)
{
    pthread_mutex_lock(&lock);
    int i = function_of(name);
    functions[i].fail_at = nth ? functions[i].calls + nth : 0;
    functions[i].code = code;
    pthread_mutex_unlock(&lock);
}

long stub_calls(const char *name)
{
    pthread_mutex_lock(&lock);
    long calls = functions[function_of(name)].calls;
    pthread_mutex_unlock(&lock);
    return calls;
}

void stub_delay(long us) { pthread_mutex_lock(&lock); delay_us = us; pthread_mutex_unlock(&lock); }
void stub_peers(int value) { pthread_mutex_lock(&lock); peers = value; pthread_mutex_unlock(&lock); }

/* Streams begin nothing new while it is held. */
void stub_hold(int value)
{
    pthread_mutex_lock(&lock);
    is_held = value;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* What lives: streams, events, pinned, imports, contexts, queued. */
long stub_live(const char *what)
{
    long count = 0;
    pthread_mutex_lock(&lock);
    if (!strcmp(what, "streams")) count = live_streams;
    if (!strcmp(what, "events")) count = live_events;
    if (!strcmp(what, "pinned")) count = live_pinned;
    for (int i = 0; i < num_mappings && !strcmp(what, "imports"); i++)
        count += mappings[i].is_import ? mappings[i].references : 0;
    for (int i = 0; i < DEVICES && !strcmp(what, "contexts"); i++) count += contexts[i].retained;
    for (int i = 0; i < num_streams && !strcmp(what, "queued"); i++)
        count += (long)(all_streams[i]->tail - all_streams[i]->head);
    pthread_mutex_unlock(&lock);
    return count;
}

int stub_violations(char *text, size_t size)
{
    pthread_mutex_lock(&lock);
    int count = num_violations;
    snprintf(text, size, "%s", last_violation);
    pthread_mutex_unlock(&lock);
    return count;
}

/* As cuLaunchHostFunc, from any thread: for stub_nccl, which launches from one of its own. */
CUresult stub_launch(CUstream s, void (*call)(void *), void *with)
{
    pthread_mutex_lock(&lock);
    CUcontext own = current;
    struct Work work = {CALL, NULL, NULL, 0, NULL, call, with, {NULL, NULL}};
    current = s->context;
    int code = enqueue(s, work);
    current = own;
    return finish(code);
}

/* Where the host sees a byte of device memory; NULL: it is none. For tests, and for stub_nccl. */
void *stub_peek(CUdeviceptr address)
{
    pthread_mutex_lock(&lock);
    struct Mapping *m = mapping_of(address, 0);
    void *host = m && !m->is_host ? m->host + (address - m->base) : NULL;
    pthread_mutex_unlock(&lock);
    return host;
}
