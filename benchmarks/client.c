/* The physical limit: a client that reads and parses the same, computes the same certainty, and nothing else.

     client tokens PORT STREAMS SECONDS TOKENS LOGPROBS
     client first  PORT TIMES

   `tokens` reads one answer of TOKENS to its end (SECONDS 0), or STREAMS answers for so long, after a second in
   which they settle; the text of a token is its time of sending (replay --timed), and so its latency is known.
   `first` measures the time from connecting to the first token, TIMES times. Prints numbers as JSON, named as
   benchmarks/measuring.py names them. Linux only. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 16, LINE_BYTES = 1 << 12, TEXT_BYTES = 1 << 9, MAX_CANDIDATES = 20 };
#define SECOND 1000000000LL

typedef struct {
    char token[TEXT_BYTES], response[TEXT_BYTES];
    double logprob, top[MAX_CANDIDATES];
    int candidates;
    bool done;
} Record;

typedef struct {
    int fd, size;    /* of the line so far */
    long chunk;      /* bytes left of the HTTP chunk; -1: its length comes next; -2: the head; -3: its "\r\n" */
    int newlines;    /* in a row, in the head */
    long length;     /* of the next chunk, as far as it is read */
    bool ended;
    double energy;
    char line[LINE_BYTES];
} Stream;

static int64_t *latencies;
static long latency_count, latency_room, tokens_read;
static bool measuring;
static double energy_sum;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t read_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* JSON: every value is walked over; the fields that a client needs are kept. */

static const char *skip_space(const char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\r') at++;
    return at;
}

static char *put_utf8(char *to, unsigned code) {
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3f));
    } else {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    }
    return to;
}

/* The string that begins after `at`, unescaped, cut at TEXT_BYTES. */
static const char *parse_string(const char *at, char *to) {
    char *end = to + TEXT_BYTES - 4;
    while (*at && *at != '"') {
        char kept[4], *put = to < end ? to : kept;
        if (*at != '\\') {
            *put = *at++;
            put++;
        } else {
            char hex[5] = {0};
            switch (at[1]) {
            case 'n': *put++ = '\n'; break;
            case 't': *put++ = '\t'; break;
            case 'r': *put++ = '\r'; break;
            case 'b': *put++ = '\b'; break;
            case 'f': *put++ = '\f'; break;
            case 'u':
                strncpy(hex, at + 2, 4);
                put = put_utf8(put, (unsigned)strtoul(hex, NULL, 16));
                at += strlen(hex);
                break;
            default: *put++ = at[1];
            }
            at += 2;
        }
        if (to < end) to = put;
    }
    *to = 0;
    return *at ? at + 1 : at;
}

static const char *parse_value(const char *at, const char *key, Record *into, int depth);

static const char *parse_object(const char *at, Record *into, int depth) {
    char key[TEXT_BYTES];
    for (at = skip_space(at); *at && *at != '}'; at = skip_space(at)) {
        if (*at == ',') {
            at++;
            continue;
        }
        if (*at != '"') return at + strlen(at);
        at = skip_space(parse_string(at + 1, key));
        at = parse_value(skip_space(*at == ':' ? at + 1 : at), key, into, depth + 1);
    }
    return *at ? at + 1 : at;
}

static const char *parse_value(const char *at, const char *key, Record *into, int depth) {
    char text[TEXT_BYTES];
    if (*at == '"') {
        if (!strcmp(key, "response")) return parse_string(at + 1, into->response);
        return parse_string(at + 1, !strcmp(key, "token") ? into->token : text);
    }
    if (*at == '{') return parse_object(at + 1, into, depth);
    if (*at == '[') {
        for (at = skip_space(at + 1); *at && *at != ']'; at = skip_space(at)) {
            at = *at == ',' ? at + 1 : parse_value(at, "", into, depth);
        }
        return *at ? at + 1 : at;
    }
    if (*at == 't' || *at == 'n' || *at == 'f') {
        if (!strcmp(key, "done")) into->done = *at == 't';
        return at + (*at == 'f' ? 5 : 4);
    }
    if (!*key) { /* an element of `bytes`: nobody needs it */
        do at++;
        while (*at && *at != ',' && *at != ']');
        return at;
    }
    char *end;
    double value = strtod(at, &end);
    if (end == at) return at + strlen(at);
    if (!strcmp(key, "logprob")) {
        if (depth <= 2) into->logprob = value;
        else if (into->candidates < MAX_CANDIDATES) into->top[into->candidates++] = value;
    }
    return end;
}

/* As core/energy.py has it: M * (1 - H / ln K). */
static double certainty(const Record *record) {
    double mass = 0, weighted = 0;
    if (!record->candidates) return 0;
    for (int i = 0; i < record->candidates; i++) {
        double p = exp(record->top[i]);
        mass += p;
        weighted -= p * record->top[i];
    }
    if (record->candidates == 1 || mass == 0) return mass;
    double sure = (1 - (weighted / mass + log(mass)) / log(record->candidates)) * (mass < 1 ? mass : 1);
    return sure > 0 ? sure : 0;
}

static void receive_line(Stream *stream, int64_t now) {
    static Record record;
    record.candidates = 0;
    record.done = false;
    record.response[0] = 0;
    stream->line[stream->size] = 0;
    parse_value(skip_space(stream->line), "", &record, 0);
    stream->size = 0;
    if (!record.response[0]) return;
    stream->energy = 0.35 * certainty(&record) + 0.65 * stream->energy;
    energy_sum += stream->energy;
    tokens_read++;
    if (measuring && latency_count < latency_room) {
        latencies[latency_count++] = now - strtoll(record.response, NULL, 10);
    }
}

/* HTTP: a head, then chunks. */

static void receive(Stream *stream, const char *at, const char *end) {
    int64_t now = read_clock(CLOCK_MONOTONIC);
    while (at < end && !stream->ended) {
        if (stream->chunk == -2) {
            stream->newlines = *at == '\n' ? stream->newlines + 1 : *at == '\r' ? stream->newlines : 0;
            at++;
            if (stream->newlines == 2) stream->chunk = -1;
        } else if (stream->chunk == -3) {
            if (*at++ == '\n') stream->chunk = -1;
        } else if (stream->chunk == -1) {
            char c = *at++;
            if (c >= '0' && c <= '9') stream->length = stream->length * 16 + c - '0';
            else if (c >= 'a' && c <= 'f') stream->length = stream->length * 16 + c - 'a' + 10;
            if (c != '\n') continue;
            stream->ended = stream->length == 0;
            stream->chunk = stream->length;
            stream->length = 0;
        } else {
            long left = end - at < stream->chunk ? end - at : stream->chunk;
            const char *newline = memchr(at, '\n', (size_t)left);
            long size = newline ? newline - at + 1 : left;
            if (stream->size + size < LINE_BYTES) {
                memcpy(stream->line + stream->size, at, (size_t)size);
                stream->size += (int)size;
            }
            at += size;
            stream->chunk -= size;
            if (newline) receive_line(stream, now);
            if (stream->chunk == 0) stream->chunk = -3;
        }
    }
}

static void open_stream(Stream *stream, int port, long tokens, bool logprobs) {
    char body[256], request[512];
    int one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    memset(stream, 0, sizeof *stream);
    stream->chunk = -2;
    stream->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(stream->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    int size = snprintf(body, sizeof body, "{\"model\":\"replay\",\"prompt\":\"Say something.\","
                        "\"options\":{\"num_predict\":%ld}%s}", tokens,
                        logprobs ? ",\"logprobs\":true,\"top_logprobs\":5" : "");
    size = snprintf(request, sizeof request, "POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", size, body);
    if (send(stream->fd, request, (size_t)size, MSG_NOSIGNAL) != size) fail("send");
}

/* Blocks. False once the answer has ended. */
static bool read_more(Stream *stream) {
    static char data[READ_BYTES];
    ssize_t size = recv(stream->fd, data, sizeof data, 0);
    if (size <= 0) stream->ended = true;
    else receive(stream, data, data + size);
    return !stream->ended;
}

static long drain(int port, long tokens, bool logprobs) {
    static Stream stream;
    long before = tokens_read;
    open_stream(&stream, port, tokens, logprobs);
    while (read_more(&stream)) {}
    close(stream.fd);
    return tokens_read - before;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static double latency_us(double share) {
    if (!latency_count) return 0;
    return (double)latencies[(long)(share * (double)(latency_count - 1))] / 1e3;
}

static void follow(int poll, double seconds) {
    int64_t end = read_clock(CLOCK_MONOTONIC) + (int64_t)(seconds * 1e9), now;
    struct epoll_event ready[64];
    while ((now = read_clock(CLOCK_MONOTONIC)) < end) {
        int count = epoll_wait(poll, ready, 64, (int)((end - now) / 1000000) + 1);
        for (int i = 0; i < count; i++) {
            Stream *stream = ready[i].data.ptr;
            if (!read_more(stream)) epoll_ctl(poll, EPOLL_CTL_DEL, stream->fd, NULL);
        }
    }
}

static void measure_flow(int port, int count, double seconds, long tokens, bool logprobs) {
    Stream *streams = calloc((size_t)count, sizeof *streams);
    int poll = epoll_create1(EPOLL_CLOEXEC);
    drain(port, 20, logprobs);
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &streams[i]};
        open_stream(&streams[i], port, tokens, logprobs);
        epoll_ctl(poll, EPOLL_CTL_ADD, streams[i].fd, &event);
    }
    follow(poll, 1.0);
    measuring = true;
    tokens_read = 0;
    int64_t cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID), wall = read_clock(CLOCK_MONOTONIC);
    follow(poll, seconds);
    cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = read_clock(CLOCK_MONOTONIC) - wall;
    qsort(latencies, (size_t)latency_count, sizeof *latencies, by_value);
    printf("{\"cpu_us\": %.4f, \"core_percent\": %.3f, \"tokens_per_s\": %.1f, \"p50_us\": %.2f, "
           "\"p99_us\": %.2f, \"p999_us\": %.2f}\n", (double)cpu / 1e3 / (double)tokens_read,
           100.0 * (double)cpu / (double)wall, 1e9 * (double)tokens_read / (double)wall, latency_us(0.5),
           latency_us(0.99), latency_us(0.999));
}

static void measure_speed(int port, long tokens, bool logprobs) {
    drain(port, tokens / 10, logprobs);
    int64_t cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID), wall = read_clock(CLOCK_MONOTONIC);
    double count = (double)drain(port, tokens, logprobs);
    cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = read_clock(CLOCK_MONOTONIC) - wall;
    printf("{\"cpu_us\": %.4f, \"wall_us\": %.4f}\n", (double)cpu / 1e3 / count, (double)wall / 1e3 / count);
}

static void measure_first(int port, int times) {
    static Stream stream;
    for (int i = 0; i < times; i++) {
        int64_t start = read_clock(CLOCK_MONOTONIC);
        tokens_read = 0;
        open_stream(&stream, port, 1, false);
        while (!tokens_read && read_more(&stream)) {}
        latencies[latency_count++] = read_clock(CLOCK_MONOTONIC) - start;
        while (!stream.ended && read_more(&stream)) {}
        close(stream.fd);
    }
    qsort(latencies, (size_t)latency_count, sizeof *latencies, by_value);
    printf("{\"warm_us\": %.2f, \"fresh_us\": %.2f}\n", latency_us(0.5), latency_us(0.5));
}

int main(int count, char **values) {
    latency_room = 4 << 20;
    latencies = malloc((size_t)latency_room * sizeof *latencies);
    if (count == 7 && !strcmp(values[1], "tokens")) {
        double seconds = atof(values[4]);
        if (seconds > 0) measure_flow(atoi(values[2]), atoi(values[3]), seconds, atol(values[5]), *values[6] == '1');
        else measure_speed(atoi(values[2]), atol(values[5]), *values[6] == '1');
    } else if (count == 4 && !strcmp(values[1], "first")) {
        measure_first(atoi(values[2]), atoi(values[3]));
    } else {
        fprintf(stderr, "client tokens PORT STREAMS SECONDS TOKENS LOGPROBS | client first PORT TIMES\n");
        return 2;
    }
    return energy_sum < 0; /* what nobody reads is not computed */
}
