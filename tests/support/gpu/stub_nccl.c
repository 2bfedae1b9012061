/* A double of libnccl.so.2 for two ranks, over stub_cuda.c: an id's root is a thread that listens on
 * loopback, as the library's; a group is launched by a thread some time after ncclGroupEnd came back,
 * as with blocking = 0; it runs on the stream of stub_cuda, over a socket between the ranks, in one
 * process or two; and a rank that is gone is noticed by nobody: its peer spins until the abort.
 * Prototypes are nccl.h's.
 *
 * What the library would not forgive is counted (stub_violations) and kept in words: another layout
 * of the configuration, two threads in one communicator, a call after abort, a group left open, use
 * before it is ready, counts that do not match.
 *
 * Environment: STUB_NCCL_CUDA (path of the copy of stub_cuda that streams and memory are of; also
 * stub_cuda_at), STUB_NCCL_FAIL (NAME:NTH:CODE, as stub_fail).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SUCCESS, CUDA_ERROR, SYSTEM_ERROR, INTERNAL, INVALID_ARGUMENT, INVALID_USAGE, REMOTE, IN_PROGRESS };
enum { FUNCTIONS = 32, OPERATIONS = 4096, STEP_MS = 2, BOOTSTRAP = 1, UINT8 = 1 };

typedef struct { char internal[128]; } ncclUniqueId;
typedef struct {
    size_t size; unsigned magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char *netName;
    int splitShare, trafficClass;
    const char *commName;
    int collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs, nChannelsPerNetPeer, nvlinkCentricSched;
} ncclConfig_t;
struct Comm {
    ncclUniqueId id;
    int rank, sock, state, threads, running;
    volatile int is_aborting, is_aborted;
    int users;
    pthread_t group_of;
    int is_in_group;
};
typedef struct Comm *ncclComm_t;
struct Operation { int is_send; char *at; size_t bytes; };
struct Group { ncclComm_t comm; void *stream; int count; struct Operation operations[]; };
struct CheckIn { int rank; uint16_t port; };
struct Header { uint64_t sequence, bytes; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char name[48]; long calls, fail_at; int code, is_hung; } functions[FUNCTIONS];
static int version = 23007, num_violations, live_comms, live_roots, open_groups;
static long delay_us;
static char last_violation[256], last_error[256];
static int (*cuda_launch)(void *, void (*)(void *), void *);
static void *(*cuda_peek)(uint64_t);
static __thread int depth, group_error;
static __thread struct Group *group;

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

static int counted(const char *name)
{
    pthread_mutex_lock(&lock);
    int i = function_of(name);
    int code = ++functions[i].calls == functions[i].fail_at ? functions[i].code : 0;
    if (code) snprintf(last_error, sizeof last_error, "stub: %s was told to fail", name);
    pthread_mutex_unlock(&lock);
    return code;
}

static int is_hung(const char *name)
{
    pthread_mutex_lock(&lock);
    int value = functions[function_of(name)].is_hung;
    pthread_mutex_unlock(&lock);
    return value;
}

/* Under the lock: who may call with this communicator now. */
static int enter(ncclComm_t comm)
{
    if (!comm) return INVALID_ARGUMENT;
    if (comm->is_aborted) { violate("call after abort"); return INVALID_ARGUMENT; }
    if (comm->users++) violate("two threads in one communicator");
    if (comm->is_in_group && !pthread_equal(comm->group_of, pthread_self()))
        violate("another thread than that of the open group");
    return 0;
}

static void set_state(ncclComm_t comm, int state)
{
    pthread_mutex_lock(&lock);
    comm->state = state;
    pthread_mutex_unlock(&lock);
}

/* ---- bytes between ranks, until the abort: 1 done, 0 end of it, -1 aborted */
static int transfer(ncclComm_t comm, int sock, void *data, size_t bytes, int is_send)
{
    char *at = data;
    while (bytes) {
        if (comm->is_aborting) return -1;
        struct pollfd ready = {sock, is_send ? POLLOUT : POLLIN, 0};
        if (poll(&ready, 1, STEP_MS) <= 0) continue;
        ssize_t n = is_send ? send(sock, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT)
                            : recv(sock, at, bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n <= 0) return 0;
        at += n;
        bytes -= (size_t)n;
    }
    return 1;
}

static int listen_on_loopback(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    memset(address, 0, size);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(sock, (struct sockaddr *)address, size) || listen(sock, 8)
        || getsockname(sock, (struct sockaddr *)address, &size)) { close(sock); return -1; }
    return sock;
}

static int dial(ncclComm_t comm, const struct sockaddr_in *address)
{
    while (!comm->is_aborting) {
        int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (!connect(sock, (const struct sockaddr *)address, sizeof *address)) return sock;
        close(sock);
        usleep(STEP_MS * 1000);
    }
    return -1;
}

/* ---- the root of an id: tells rank 1 where rank 0 listens */
struct Root { int sock; char magic[8]; };

static int check_in(struct Root *root, int sock, struct CheckIn *info)
{
    char magic[8];
    int kind;
    if (recv(sock, magic, 8, MSG_WAITALL) != 8 || memcmp(magic, root->magic, 8)) return 0;
    if (recv(sock, &kind, sizeof kind, MSG_WAITALL) != sizeof kind || kind != BOOTSTRAP) return -1;
    if (recv(sock, info, sizeof *info, MSG_WAITALL) != sizeof *info) return -1;
    return info->rank == 0 || info->rank == 1 ? 1 : -1;
}

static void *serve(void *argument)
{
    struct Root *root = argument;
    int socks[2] = {-1, -1};
    uint16_t port = 0;
    while (socks[0] < 0 || socks[1] < 0) {
        struct CheckIn info;
        int sock = accept(root->sock, NULL, NULL);
        int is_rank = sock < 0 ? -1 : check_in(root, sock, &info);
        if (is_rank == 0) { close(sock); continue; }
        if (is_rank < 0 || socks[info.rank] >= 0) { if (sock >= 0) close(sock); break; }
        socks[info.rank] = sock;
        if (info.rank == 0) port = info.port;
    }
    for (int rank = 0; rank < 2; rank++) {
        if (socks[0] >= 0 && socks[1] >= 0) (void)!send(socks[rank], &port, sizeof port, MSG_NOSIGNAL);
        if (socks[rank] >= 0) close(socks[rank]);
    }
    close(root->sock);
    free(root);
    pthread_mutex_lock(&lock);
    live_roots--;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static int start(void *(*run)(void *), void *with)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, with)) return SYSTEM_ERROR;
    pthread_detach(thread);
    return SUCCESS;
}

/* ---- what the library offers */
int ncclGetVersion(int *value) { int code = counted(__func__); *value = version; return code; }

const char *ncclGetErrorString(int code)
{
    static const char *texts[] = {"no error", "unhandled cuda error", "unhandled system error",
        "internal error", "invalid argument", "invalid usage", "remote process exited",
        "NCCL operation in progress"};
    return code >= 0 && code < 8 ? texts[code] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) { (void)comm; return last_error; }

int ncclGetUniqueId(ncclUniqueId *id)
{
    struct sockaddr_in address;
    int code = counted(__func__);
    if (code) return code;
    struct Root *root = calloc(1, sizeof *root);
    root->sock = listen_on_loopback(&address);
    if (root->sock < 0 || getrandom(root->magic, 8, 0) != 8) return SYSTEM_ERROR;
    memset(id, 0, sizeof *id);
    memcpy(id->internal, root->magic, 8);
    memcpy(id->internal + 8, &address, sizeof address);
    pthread_mutex_lock(&lock);
    live_roots++;
    pthread_mutex_unlock(&lock);
    return start(serve, root);
}

static const char *fault_of(const ncclConfig_t *c)
{
    if (!c || c->size != sizeof *c || c->magic != 0xcafebeef) return "size or magic of the configuration";
    if (c->version < 22800 || c->version > 99999) return "version of the configuration";
    if (c->blocking != 0 || c->maxCTAs < 1 || c->maxCTAs > 4) return "blocking or maxCTAs";
    const int rest[] = {c->cgaClusterSize, c->minCTAs, c->splitShare, c->trafficClass, c->collnetEnable,
        c->CTAPolicy, c->shrinkShare, c->nvlsCTAs, c->nChannelsPerNetPeer, c->nvlinkCentricSched};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        if (rest[i] != INT_MIN) return "a field of the configuration that should be undefined";
    return c->netName || c->commName ? "a name in the configuration" : NULL;
}

/* Rank 0 waits for rank 1, which the root sends to it. Returns the state. */
static int meet(ncclComm_t comm)
{
    struct sockaddr_in root, own;
    uint16_t port;
    char magic[8];
    memcpy(&root, comm->id.internal + 8, sizeof root);
    if (root.sin_family != AF_INET) return INTERNAL;
    int listener = listen_on_loopback(&own), sock = dial(comm, &root), kind = BOOTSTRAP;
    struct CheckIn info;
    memset(&info, 0, sizeof info);
    info.rank = comm->rank;
    info.port = own.sin_port;
    int is_done = sock >= 0 && transfer(comm, sock, comm->id.internal, 8, 1) == 1
        && transfer(comm, sock, &kind, sizeof kind, 1) == 1
        && transfer(comm, sock, &info, sizeof info, 1) == 1
        && transfer(comm, sock, &port, sizeof port, 0) == 1;
    if (sock >= 0) close(sock);
    if (is_done && comm->rank == 1) {
        root.sin_port = port;
        comm->sock = dial(comm, &root);
        is_done = comm->sock >= 0 && transfer(comm, comm->sock, comm->id.internal, 8, 1) == 1;
    } else if (is_done) {
        struct pollfd ready = {listener, POLLIN, 0};
        while (!comm->is_aborting && poll(&ready, 1, STEP_MS) <= 0) { }
        comm->sock = comm->is_aborting ? -1 : accept(listener, NULL, NULL);
        is_done = comm->sock >= 0 && transfer(comm, comm->sock, magic, 8, 0) == 1
            && !memcmp(magic, comm->id.internal, 8);
    }
    close(listener);
    while (is_hung("join") && !comm->is_aborting) usleep(STEP_MS * 1000);
    return is_done ? SUCCESS : REMOTE;
}

static void *run_join(void *argument)
{
    ncclComm_t comm = argument;
    int state = meet(comm), code = counted("join");
    pthread_mutex_lock(&lock);
    comm->state = code ? code : state;
    comm->threads--;
    pthread_mutex_unlock(&lock);
    return NULL;
}

int ncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    int code = counted(__func__);
    const char *fault = fault_of(config);
    *comm = NULL;
    if (code) return code;
    if (nranks != 2 || rank < 0 || rank > 1) fault = "ranks";
    if (fault) {
        pthread_mutex_lock(&lock);
        violate(fault);
        pthread_mutex_unlock(&lock);
        return INVALID_ARGUMENT;
    }
    ncclComm_t made = calloc(1, sizeof *made);
    made->id = id;
    made->rank = rank;
    made->sock = -1;
    made->state = IN_PROGRESS;
    made->threads = 1;
    pthread_mutex_lock(&lock);
    live_comms++;
    pthread_mutex_unlock(&lock);
    *comm = made;
    return start(run_join, made) ? SYSTEM_ERROR : IN_PROGRESS;
}

int ncclCommGetAsyncError(ncclComm_t comm, int *state)
{
    int code = counted(__func__), told = counted("async");
    pthread_mutex_lock(&lock);
    int refused = enter(comm);
    if (!refused) {
        if (told) comm->state = told;
        *state = comm->state;
        comm->users--;
    }
    pthread_mutex_unlock(&lock);
    return refused ? refused : code;
}

int ncclCommAbort(ncclComm_t comm)
{
    int code = counted(__func__);
    pthread_mutex_lock(&lock);
    int refused = enter(comm);
    if (!refused && depth) violate("abort inside of a group");
    if (!refused) comm->is_aborting = 1;
    while (!refused && comm->threads) {
        pthread_mutex_unlock(&lock);
        usleep(500);
        pthread_mutex_lock(&lock);
    }
    pthread_mutex_unlock(&lock);
    if (refused) return refused;
    while (is_hung("abort")) usleep(500);
    pthread_mutex_lock(&lock);
    comm->users--;
    comm->is_aborted = 1;
    live_comms--;
    if (comm->sock >= 0 && !comm->running) { close(comm->sock); comm->sock = -1; }
    pthread_mutex_unlock(&lock);
    return code;
}

int ncclGroupStart(void)
{
    int code = counted(__func__);
    if (code) return code;
    if (!depth++) {
        group = calloc(1, sizeof *group + OPERATIONS * sizeof *group->operations);
        group_error = 0;
        pthread_mutex_lock(&lock);
        open_groups++;
        pthread_mutex_unlock(&lock);
    }
    return SUCCESS;
}

static int add(const char *name, int is_send, const void *at, size_t bytes, int kind, int peer, ncclComm_t comm, void *stream)
{
    int code = counted(name);
    pthread_mutex_lock(&lock);
    int refused = enter(comm);
    if (refused) { pthread_mutex_unlock(&lock); return refused; }
    comm->users--;
    char *host = cuda_peek ? cuda_peek((uint64_t)(uintptr_t)at) : NULL;
    const char *fault = !depth ? "a send or receive outside of a group"
        : comm->state != SUCCESS ? "use before it is ready"
        : kind != UINT8 || peer != 1 - comm->rank || !stream || !bytes ? "arguments of send or receive"
        : !host ? "an address that is no device memory"
        : group->comm && (group->comm != comm || group->stream != stream) ? "two streams in one group"
        : group->count == OPERATIONS ? "too many in one group" : NULL;
    if (fault) violate(fault);
    if (fault && !code) code = INVALID_ARGUMENT;
    if (code && depth) group_error = code;
    if (!code) {
        group->comm = comm;
        group->stream = stream;
        group->operations[group->count++] = (struct Operation){is_send, host, bytes};
        comm->is_in_group = 1;
        comm->group_of = pthread_self();
    }
    pthread_mutex_unlock(&lock);
    return code;
}

int ncclSend(const void *at, size_t bytes, int kind, int peer, ncclComm_t comm, void *stream)
{
    return add(__func__, 1, at, bytes, kind, peer, comm, stream);
}

int ncclRecv(void *at, size_t bytes, int kind, int peer, ncclComm_t comm, void *stream)
{
    return add(__func__, 0, at, bytes, kind, peer, comm, stream);
}

/* On the stream's thread. Nothing but the abort ends it early, or a network that fails ("network"). */
static void execute(void *argument)
{
    struct Group *g = argument;
    ncclComm_t comm = g->comm;
    int result = 1;
    for (int i = 0; i < g->count && result == 1; i++) {
        struct Operation *o = &g->operations[i];
        struct Header header = {(uint64_t)i, o->bytes};
        int code = counted("network");
        if (code) { set_state(comm, code); break; }
        result = transfer(comm, comm->sock, &header, sizeof header, o->is_send);
        if (result == 1 && (header.sequence != (uint64_t)i || header.bytes != o->bytes)) {
            pthread_mutex_lock(&lock);
            violate("sends and receives do not match");
            pthread_mutex_unlock(&lock);
            result = 0;
        }
        if (result == 1) result = transfer(comm, comm->sock, o->at, o->bytes, o->is_send);
    }
    /* The other rank is gone: the kernel spins. */
    while (!result && !comm->is_aborting) usleep(STEP_MS * 1000);
    pthread_mutex_lock(&lock);
    if (!--comm->running && comm->is_aborted && comm->sock >= 0) { close(comm->sock); comm->sock = -1; }
    pthread_mutex_unlock(&lock);
    free(g);
}

static void *launch(void *argument)
{
    struct Group *g = argument;
    ncclComm_t comm = g->comm;
    if (delay_us) usleep((useconds_t)delay_us);
    while (is_hung("launch") && !comm->is_aborting) usleep(STEP_MS * 1000);
    int code = counted("launch");
    pthread_mutex_lock(&lock);
    if (!code && !comm->is_aborting) comm->running++; else code = code ? code : INTERNAL;
    pthread_mutex_unlock(&lock);
    if (!code && cuda_launch(g->stream, execute, g)) code = CUDA_ERROR;
    pthread_mutex_lock(&lock);
    /* The kernel may have failed by now. */
    if (comm->state == IN_PROGRESS) comm->state = code;
    comm->threads--;
    pthread_mutex_unlock(&lock);
    return NULL;
}

int ncclGroupEnd(void)
{
    int code = counted(__func__);
    if (!depth) { pthread_mutex_lock(&lock); violate("end of a group that is not open"); pthread_mutex_unlock(&lock); return INVALID_USAGE; }
    if (--depth) return code;
    struct Group *g = group;
    group = NULL;
    pthread_mutex_lock(&lock);
    open_groups--;
    if (g->comm) g->comm->is_in_group = 0;
    if (!code) code = group_error;
    if (!code && g->comm) { g->comm->state = IN_PROGRESS; g->comm->threads++; }
    pthread_mutex_unlock(&lock);
    if (code || !g->comm) { free(g); return code; }
    return start(launch, g) ? SYSTEM_ERROR : IN_PROGRESS;
}

/* ---- for tests: `gpu.nccl` calls these */

/* The n-th call from now on (1: the next) of a function returns a code, once. Besides the library's
 * own: "join" and "launch" (what comes of them later), "async" (the state from then on), "network"
 * (a kernel ends without its data, and the state is the code). */
void stub_fail(const char *name, long nth, int code)
{
    pthread_mutex_lock(&lock);
    int i = function_of(name);
    functions[i].fail_at = nth ? functions[i].calls + nth : 0;
    functions[i].code = code;
    pthread_mutex_unlock(&lock);
}

/* "join", "launch" and "abort" do not come to an end while they are hung; the first two but for an
 * abort. */
void stub_hang(const char *name, int value)
{
    pthread_mutex_lock(&lock);
    functions[function_of(name)].is_hung = value;
    pthread_mutex_unlock(&lock);
}

void stub_version(int value) { version = value; }
void stub_delay(long us) { delay_us = us; }

long stub_calls(const char *name)
{
    pthread_mutex_lock(&lock);
    long calls = functions[function_of(name)].calls;
    pthread_mutex_unlock(&lock);
    return calls;
}

/* What lives: comms, roots, groups. */
long stub_live(const char *what)
{
    pthread_mutex_lock(&lock);
    long count = !strcmp(what, "comms") ? live_comms : !strcmp(what, "roots") ? live_roots : open_groups;
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

void stub_forgive(void) { num_violations = 0; last_violation[0] = 0; }

/* Whose streams and memory these are: a copy of stub_cuda by its path. 0 if it is one. */
int stub_cuda_at(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library) return -1;
    cuda_launch = (int (*)(void *, void (*)(void *), void *))dlsym(library, "stub_launch");
    cuda_peek = (void *(*)(uint64_t))dlsym(library, "stub_peek");
    return cuda_launch && cuda_peek ? 0 : -1;
}

__attribute__((constructor)) static void read_environment(void)
{
    char name[48];
    long nth;
    int code;
    const char *text = getenv("STUB_NCCL_CUDA");
    if (text && stub_cuda_at(text)) fprintf(stderr, "stub_nccl: %s is no stub_cuda\n", text);
    text = getenv("STUB_NCCL_FAIL");
    if (text && sscanf(text, "%47[^:]:%ld:%d", name, &nth, &code) == 3) stub_fail(name, nth, code);
}
