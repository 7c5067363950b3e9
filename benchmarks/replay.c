/* A daemon that is never the bottleneck: it replays tokens over loopback HTTP/1.1, from one epoll thread.

     replay [--port N] [--tokens N] [--batch N] [--rate R] [--logprobs] [--timed] [--log]

   Streams have Ollama's framing: one JSON object and "\n" is one HTTP chunk. --tokens is the length of an
   answer (a request's num_predict comes first). Without --rate it sends as fast as the client reads,
   --batch tokens per write; with it, one token per write, R of them per second and stream, the streams
   out of step. --logprobs adds five candidates per token, with all digits and `bytes`.

   `created_at` is the time of sending, on the monotonic clock, written as the date that it would be if
   the clock had started in 1970; with --timed the text of each token is that time, in nanoseconds, so that
   every client can tell how late it has it. Says "port N" once it listens and, with --log, whenever it sees that a
   client has gone, "closed NANOSECONDS SENT ASKED". Linux only. Ends with the process that started it. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { LINES = 256, LINE_BYTES = 1024, MAX_BATCH = 64, REQUEST_BYTES = 1 << 16, MAX_FD = 4096 };
enum { OUT_BYTES = MAX_BATCH * LINE_BYTES + 4096, WRITES_PER_TURN = 16, STAMP_BYTES = 30, NS_BYTES = 19 };
#define SECOND 1000000000LL

static struct {
    long port, tokens, batch;
    double rate;
    bool logprobs, timed, log;
} options = {.tokens = 1000, .batch = 32};

typedef struct {
    char bytes[LINE_BYTES];
    int size, stamp, text; /* where the time goes */
} Line;

typedef struct Connection {
    int fd;
    struct Connection *before, *after; /* those whose next token is due sooner, and later */
    bool streaming, chat, last_written, close_after, wants_out;
    long sent, asked;
    int64_t start, due;
    int in_size, out_size, out_done;
    char in[REQUEST_BYTES + 1], out[OUT_BYTES];
} Connection;

static Line lines[2][LINES]; /* generate, chat */
static Connection *connections[MAX_FD];
static Connection *soonest, *latest; /* due */
static int poll_fd, timer_fd;
static unsigned streams;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void format_stamp(char *to, int64_t ns) {
    time_t seconds = ns / SECOND;
    struct tm date;
    char text[64];
    gmtime_r(&seconds, &date);
    snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d.%09dZ", date.tm_year + 1900,
             date.tm_mon + 1, date.tm_mday, date.tm_hour, date.tm_min, date.tm_sec, (int)(ns % SECOND));
    memcpy(to, text, STAMP_BYTES);
}

/* What is said, rendered once: only the time changes. */

static const char *WORDS[] = {
    " the", " of", " and", " a", " to", " in", " is", ".", ",", " that", " it", " energy", " tokens", "ing",
    " stream", "\\n", " over", " \\\"", "s", " model", " caf\xc3\xa9", " which", " \\u003c", " 17", " as",
    " certain", "ly", " flows", " (", ")", " because", " measure", "d",
};
enum { WORD_COUNT = sizeof WORDS / sizeof *WORDS };

static const char NO_TIME[NS_BYTES + 1] = "0000000000000000000";

static uint32_t next_random(void) {
    static uint32_t state = 1;
    return state = state * 1664525u + 1013904223u;
}

static int append(char *to, int size, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size += vsnprintf(to + size, (size_t)(LINE_BYTES - size), format, arguments);
    va_end(arguments);
    return size;
}

/* The shortest digits that read back as the same number: what Go writes. */
static int append_float(char *to, int size, double value) {
    for (int digits = 1; digits <= 17; digits++) {
        char text[40];
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return append(to, size, "%s", text);
    }
    return size;
}

static int append_token(char *to, int size, const char *word, double logprob) {
    size = append(to, size, "{\"token\":\"%s\",\"logprob\":", word);
    size = append_float(to, size, logprob);
    size = append(to, size, ",\"bytes\":[");
    const char *escape = strchr(word, '\\'); /* one character, whatever it is written as */
    int plain = escape ? (int)(escape - word) : (int)strlen(word);
    for (int i = 0; i < plain; i++) size = append(to, size, "%s%u", i ? "," : "", (unsigned char)word[i]);
    if (escape) {
        int code = escape[1] == 'n' ? 10 : escape[1] == 'u' ? '<' : '"';
        size = append(to, size, "%s%d", plain ? "," : "", code);
    }
    return append(to, size, "]");
}

static int append_logprobs(char *to, int size, const char *word) {
    float logprob = -0.01f - (float)(next_random() >> 8) / (1 << 24);
    size = append(to, size, ",\"logprobs\":[");
    size = append_token(to, size, word, logprob);
    size = append(to, size, ",\"top_logprobs\":[");
    for (int i = 0; i < 5; i++) {
        const char *other = i ? WORDS[(next_random() >> 16) % WORD_COUNT] : word;
        size = append(to, size, i ? "," : "");
        size = append(to, append_token(to, size, other, logprob), "}");
        logprob -= 0.2f + (float)(next_random() >> 8) / (1 << 23);
    }
    return append(to, size, "]}]");
}

static void render(Line *line, bool chat) {
    char json[LINE_BYTES];
    const char *word = options.timed ? NO_TIME : WORDS[(next_random() >> 16) % WORD_COUNT];
    int size = append(json, 0, "{\"model\":\"replay\",\"created_at\":\"");
    int stamp = size;
    size = append(json, size, "%*s\",", STAMP_BYTES, "");
    size = append(json, size, chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"done\":false"
                                   : "\"response\":\"%s\",\"done\":false", word);
    if (options.logprobs) size = append_logprobs(json, size, word);
    size = append(json, size, "}\n");
    int head = append(line->bytes, 0, "%x\r\n", size);
    line->stamp = head + stamp;
    line->size = append(line->bytes, head, "%s\r\n", json);
    line->text = options.timed ? (int)(strstr(line->bytes, NO_TIME) - line->bytes) : 0;
    if (line->size >= LINE_BYTES) {
        fprintf(stderr, "a line is longer than %d bytes\n", LINE_BYTES);
        exit(1);
    }
}

/* Answers */

static void put(Connection *c, const char *text) {
    int size = (int)strlen(text);
    memcpy(c->out + c->out_size, text, (size_t)size);
    c->out_size += size;
}

static void put_json(Connection *c, int status, const char *json) {
    char head[256];
    snprintf(head, sizeof head, "HTTP/1.1 %d %s\r\nContent-Type: application/json; charset=utf-8\r\n"
             "Content-Length: %zu\r\n\r\n", status, status == 200 ? "OK" : "Not Found", strlen(json));
    put(c, head);
    put(c, json);
}

static void put_tokens(Connection *c, long count) {
    char stamp[STAMP_BYTES], text[NS_BYTES + 1];
    int64_t now = now_ns();
    format_stamp(stamp, now);
    snprintf(text, sizeof text, "%0*lld", NS_BYTES, (long long)now);
    for (; count > 0 && c->sent < c->asked; count--, c->sent++) {
        const Line *line = &lines[c->chat][c->sent % LINES];
        char *to = c->out + c->out_size;
        memcpy(to, line->bytes, (size_t)line->size);
        memcpy(to + line->stamp, stamp, STAMP_BYTES);
        if (options.timed) memcpy(to + line->text, text, NS_BYTES);
        c->out_size += line->size;
    }
}

static void put_last(Connection *c) {
    char json[512], chunk[600], stamp[STAMP_BYTES];
    format_stamp(stamp, now_ns());
    int size = append(json, 0, "{\"model\":\"replay\",\"created_at\":\"%.*s\",%s,\"done\":true,"
                      "\"done_reason\":\"length\",\"total_duration\":2861991,\"load_duration\":675213,"
                      "\"prompt_eval_count\":4,\"prompt_eval_duration\":171000,\"eval_count\":%ld,"
                      "\"eval_duration\":%lld}\n", STAMP_BYTES, stamp,
                      c->chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"\"}" : "\"response\":\"\"",
                      c->sent, (long long)(now_ns() - c->start));
    snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n0\r\n\r\n", size, json);
    put(c, chunk);
    c->last_written = true;
}

/* The number or text that follows "key": in a request's body; NULL without it. */
static const char *value_of(const char *body, const char *key) {
    const char *at = strstr(body, key);
    if (!at) return NULL;
    for (at += strlen(key); *at == ' ' || *at == ':'; at++) {}
    return at;
}

static bool has_prompt(const char *body) {
    const char *prompt = value_of(body, "\"prompt\""), *messages = value_of(body, "\"messages\"");
    return (prompt && strncmp(prompt, "\"\"", 2)) || (messages && strncmp(messages, "[]", 2));
}

/* All streams have one period, so whoever has just sent is due last: the queue is nearly always a ring. */

static void leave_queue(Connection *c) {
    if (c->before) c->before->after = c->after;
    else if (soonest == c) soonest = c->after;
    if (c->after) c->after->before = c->before;
    else if (latest == c) latest = c->before;
    c->before = c->after = NULL;
}

static void join_queue(Connection *c) {
    Connection *before = latest;
    while (before && before->due > c->due) before = before->before;
    c->before = before;
    c->after = before ? before->after : soonest;
    if (c->after) c->after->before = c;
    else latest = c;
    if (before) before->after = c;
    else soonest = c;
}

static void arm_timer(void) {
    struct itimerspec when = {0};
    if (soonest) {
        when.it_value.tv_sec = soonest->due / SECOND;
        when.it_value.tv_nsec = soonest->due % SECOND;
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void start_stream(Connection *c, const char *body) {
    const char *count = value_of(body, "\"num_predict\"");
    put(c, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n");
    c->streaming = true;
    c->last_written = false;
    c->sent = 0;
    c->asked = count ? atol(count) : options.tokens;
    c->start = c->due = now_ns();
    if (options.rate > 0) {
        /* Even over the period, whenever the requests came: every client meets the same arrivals. */
        double phase = streams++ * 0.6180339887;
        int64_t period = (int64_t)(1e9 / options.rate);
        c->due += period - c->due % period + (int64_t)((phase - (double)(long)phase) * (double)period);
        join_queue(c);
        arm_timer();
    }
}

static void answer(Connection *c, const char *head, const char *body) {
    c->chat = !strncmp(head, "POST /api/chat ", 15);
    if (!strncmp(head, "GET /api/version ", 17)) {
        put_json(c, 200, "{\"version\":\"0.32.15\"}");
    } else if (!strncmp(head, "GET /api/ps ", 12) || !strncmp(head, "GET /api/tags ", 14)) {
        put_json(c, 200, "{\"models\":[{\"name\":\"replay:latest\",\"model\":\"replay:latest\"}]}"); /* warm */
    } else if (!strncmp(head, "POST /api/show ", 15)) {
        put_json(c, 200, "{\"capabilities\":[\"completion\"]}");
    } else if (!c->chat && strncmp(head, "POST /api/generate ", 19)) {
        put_json(c, 404, "{\"error\":\"replay knows version, ps, tags, show, generate and chat\"}");
    } else if (has_prompt(body)) {
        start_stream(c, body);
    } else {
        put_json(c, 200, "{\"model\":\"replay\",\"created_at\":\"1970-01-01T00:00:00.000000000Z\","
                         "\"response\":\"\",\"done\":true,\"done_reason\":\"load\"}");
    }
}

/* Connections */

static void forget(Connection *c) {
    if (options.log) printf("closed %lld %ld %ld\n", (long long)now_ns(), c->sent, c->asked);
    leave_queue(c);
    close(c->fd);
    connections[c->fd] = NULL;
    free(c);
}

static void want_out(Connection *c, bool wanted) {
    if (c->wants_out == wanted) return;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0u), .data.fd = c->fd};
    c->wants_out = wanted;
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* Sends what is waiting. False when some of it still waits or the client has gone. */
static bool flush_out(Connection *c) {
    while (c->out_done < c->out_size) {
        ssize_t sent = send(c->fd, c->out + c->out_done, (size_t)(c->out_size - c->out_done), MSG_NOSIGNAL);
        if (sent < 0) return false;
        c->out_done += (int)sent;
    }
    c->out_size = c->out_done = 0;
    return true;
}

static bool queued(const Connection *c) { return c->before || c->after || soonest == c; }

/* Sends what is due. False when the connection has ended. */
static bool proceed(Connection *c) {
    bool flowing = flush_out(c);
    if (flowing && c->streaming && options.rate > 0 && !queued(c)) {
        join_queue(c);
        arm_timer();
    }
    for (int turn = 0; flowing && c->streaming && turn < WRITES_PER_TURN; turn++) {
        if (c->last_written) {
            c->streaming = false;
            leave_queue(c);
        } else if (c->sent == c->asked) {
            put_last(c);
        } else if (options.rate == 0) {
            put_tokens(c, options.batch);
        } else if (c->due <= now_ns()) {
            put_tokens(c, 1);
            leave_queue(c);
            c->due += (int64_t)(1e9 / options.rate);
            join_queue(c);
        } else {
            break;
        }
        flowing = flush_out(c);
    }
    if (!flowing) leave_queue(c); /* it does not read: nothing is due before there is room again */
    want_out(c, !flowing || (c->streaming && options.rate == 0));
    if (c->streaming || !flowing || !c->close_after) return true;
    forget(c);
    return false;
}

/* Takes one whole request out of what was read; false when there is none. */
static bool take_request(Connection *c) {
    c->in[c->in_size] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end || c->streaming) return false;
    const char *length = strcasestr(c->in, "\r\ncontent-length:");
    int total = (int)(end + 4 - c->in) + (length && length < end ? atoi(length + 17) : 0);
    if (c->in_size < total) return false;
    const char *closing = strcasestr(c->in, "\r\nconnection: close");
    c->close_after = closing && closing < end;
    char kept = c->in[total];
    c->in[total] = 0;
    answer(c, c->in, end + 4);
    c->in[total] = kept;
    c->in_size -= total;
    memmove(c->in, c->in + total, (size_t)c->in_size);
    return true;
}

static void serve(Connection *c, uint32_t events) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t size = recv(c->fd, c->in + c->in_size, (size_t)(REQUEST_BYTES - c->in_size), 0);
        if (size == 0 || (size < 0 && errno != EAGAIN)) {
            forget(c);
            return;
        }
        if (size > 0) c->in_size += (int)size;
    }
    do {
        if (!proceed(c)) return;
    } while (take_request(c));
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        Connection *c = fd < MAX_FD ? calloc(1, sizeof *c) : NULL;
        if (!c) {
            close(fd);
            continue;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        connections[fd] = c;
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void tick(void) {
    uint64_t expirations;
    if (read(timer_fd, &expirations, sizeof expirations) < 0) return;
    int64_t now = now_ns();
    for (Connection *c = soonest, *next; c && c->due <= now; c = next) {
        next = c->after;
        proceed(c);
    }
    arm_timer();
}

static void parse_options(int count, char **values) {
    static const struct option KNOWN[] = {
        {"port", 1, 0, 'p'}, {"tokens", 1, 0, 't'}, {"batch", 1, 0, 'b'},
        {"rate", 1, 0, 'r'}, {"logprobs", 0, 0, 'l'}, {"timed", 0, 0, 'm'}, {"log", 0, 0, 'g'}, {0},
    };
    for (int each; (each = getopt_long(count, values, "", KNOWN, NULL)) != -1;) {
        switch (each) {
        case 'p': options.port = atol(optarg); break;
        case 't': options.tokens = atol(optarg); break;
        case 'b': options.batch = atol(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'l': options.logprobs = true; break;
        case 'm': options.timed = true; break;
        case 'g': options.log = true; break;
        default: exit(2);
        }
    }
    if (options.batch < 1 || options.batch > MAX_BATCH) {
        fprintf(stderr, "--batch is from 1 to %d\n", MAX_BATCH);
        exit(2);
    }
}

static int listen_on(long port) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("port %d\n", ntohs(address.sin_port));
    return listener;
}

int main(int count, char **values) {
    parse_options(count, values);
    setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < LINES; i++) {
        render(&lines[0][i], false);
        render(&lines[1][i], true);
    }
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int listener = listen_on(options.port);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = timer_fd;
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    for (;;) {
        int size = epoll_wait(poll_fd, ready, 256, -1);
        for (int i = 0; i < size; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) accept_all(listener);
            else if (fd == timer_fd) tick();
            else if (connections[fd]) serve(connections[fd], ready[i].events);
        }
    }
}
