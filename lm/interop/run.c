// Runs a language model: this file and a model.bin, nothing else.
//   cc -O3 -march=native -fopenmp run.c -lm -o run
//   ./run model.bin "Once upon a time"
// What model.bin holds is told in lm/interop/two_file.py, which wrote it.
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <fcntl.h>
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

static const char USAGE[] =
    "usage: run model.bin [options] \"prompt\"\n"
    "  -n N           tokens to write at most (256; with -c all there is)\n"
    "  -t T           temperature; 0, the default, takes the likeliest token\n"
    "  -p P           draw among the likeliest that together have P (1)\n"
    "  -s S           seed (0)\n"
    "  -c             chat: each line of the input is a turn\n"
    "  --system TEXT  the system prompt of a chat\n"
    "  --logits       reads token ids, writes float32 [tokens, vocabulary]\n"
    "  --tokenize     reads texts, NUL after each, and prints their ids\n"
    "  --tokenize-content  the same, but control tokens are plain text";
static double temperature, top_p = 1, time_in, time_out;
static uint64_t seed;
static long most = -1, pos, tokens_in, tokens_out;  // pos: in the cache.

#define die(...) (fflush(stdout), fprintf(stderr, "run: " __VA_ARGS__), \
                  fputc('\n', stderr), exit(2))
#define need(good, what) \
  if (!(good)) die("%s is damaged (its %s): export it again", path, what)

static void *room(void *old, uint64_t count, uint64_t size) {
  uint64_t bytes = (count + 1) * size;  // Pages never written cost nothing.
  void *p = count >> 48 ? NULL : old ? realloc(old, bytes) : calloc(bytes, 1);
  if (!p) die("not enough memory: %.0f MB are too many", bytes / 1e6);
  return p;
}

// ---------------------------------------------------------------- the file

enum { QUANTISED = 1, TIED = 2, QK_NORM = 4, BIAS = 8, TRIM = 16, CUT = 32,
       DUMMY = 64, FLAGS = 128 };
enum { EOS, PREFIX, TOKENS, BYTES, ADDED, BYTE_IDS, MERGES, WORDS, STAGES,
       PROGRAM, KINDS, CHAT, ROPE, WEIGHTS, SECTIONS };
enum { FIRST, SYSTEM, AFTER_SYSTEM, ANSWER, NEXT, PIECES };  // Of CHAT.
enum { MATCH, TAKE, SPAN, SPLIT, JUMP, AHEAD, NOT_AHEAD, OPS };  // Of PROGRAM.
enum { BLOCK = 16 };  // Tokens that go through the weights together.
enum mode { SET, ADD, GATE };
typedef struct { uint32_t start, length; } Piece;  // Of BYTES.
typedef struct { Piece text; uint32_t id, pass, special; } Added;
typedef struct { uint64_t key; uint32_t rank, id; } Merge;
typedef struct { uint32_t op, to, other, zero; uint64_t kinds; } Op;
typedef struct { uint64_t first; uint32_t kind, zero; } Range;
typedef struct {
  char magic[8];
  uint32_t version, flags, group, V, D, L, N, K, H, F, S, window;
  float eps, cap;
  uint64_t size, checksum;
  struct { uint64_t offset, count; } section[SECTIONS];
} Header;
typedef struct { const void *w; const float *scale; int rows, cols; } Matrix;
typedef struct {
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm, *bias;
  Matrix qkv, o, gate_up, down;
} Layer;
static const uint32_t SIZES[] = {4, 4, 8, 1, 20, 4, 16, 4, 4, 24, 16, 8, 4, 1};
static const char *path, *file;
static const Header *h;
static Layer *layers;
static Matrix embed, unembed;
static const float *final_norm;
static uint64_t used;  // Bytes of WEIGHTS that are given out.
#define COUNT(s) (h->section[s].count)
#define PART(type, s) ((const type *)(file + h->section[s].offset))

// Every number that will be an index or a size is looked at here, once.
static void check(uint64_t size) {
  need(!memcmp(h->magic, "lm2file", 8), "first bytes");
  if (h->version != 1) die("%s is of version %u, not 1: take the run.c that was"
                           " written beside it", path, h->version);
  need(h->size == size, "length");
  static const int bits[] = {22, 17, 10, 10, 10, 10, 19, 24};
  for (int i = 0; i < 8; i++)  // V, D, L, N, K, H, F, S.
    need((&h->V)[i] >= 1 && (&h->V)[i] <= 1u << bits[i], "shape");
  need(h->N % h->K == 0 && h->H % 2 == 0 && h->window <= h->S
       && h->flags < FLAGS && h->eps >= 0 && h->cap >= 0 && h->group >= 1
       && h->group <= 64 && h->D % h->group + h->F % h->group == 0
       && h->N * h->H % h->group == 0, "settings");
  for (int s = 0; s < SECTIONS; s++)
    need(h->section[s].offset % 64 == 0 && h->section[s].offset <= size
         && COUNT(s) <= (size - h->section[s].offset) / SIZES[s], "sections");
  uint64_t sum = 0xCBF29CE484222325u;  // FNV-1a, of words of 8 bytes.
  for (const uint64_t *p = (const void *)h; (char *)p < PART(char, ROPE); p++)
    sum = p == &h->checksum ? sum : (sum ^ *p) * 0x100000001B3u;
  need(h->checksum == sum, "checksum");
  uint32_t V = h->V, ops = COUNT(PROGRAM) < 1 << 20 ? COUNT(PROGRAM) : 0;
  const uint32_t below[][3] = {  // Section, field of its records, limit.
      {EOS, 0, V}, {PREFIX, 0, V}, {ADDED, 2, V}, {BYTE_IDS, 0, V + 1},
      {WORDS, 0, V}, {STAGES, 0, ops}, {PROGRAM, 0, OPS}, {PROGRAM, 1, ops},
      {PROGRAM, 2, ops}, {KINDS, 2, 64}};
  for (int k = 0; k < 10; k++)
    for (size_t i = 0, s = below[k][0]; i < COUNT(s); i++)
      need(PART(uint32_t, s)[i * SIZES[s] / 4 + below[k][1]] < below[k][2],
           "vocabulary");
  for (int k = 0; k < 3; k++)
    for (size_t i = 0, s = (int[]){TOKENS, ADDED, CHAT}[k]; i < COUNT(s); i++) {
      const Piece *p = (const Piece *)(PART(char, s) + i * SIZES[s]);
      need(p->start <= COUNT(BYTES) && p->length <= COUNT(BYTES) - p->start
           && (p->length || s != ADDED), "texts");
    }
  need(COUNT(TOKENS) == V && COUNT(BYTE_IDS) == 256 && COUNT(PREFIX) < h->S
       && COUNT(STAGES) <= 16 && (COUNT(CHAT) == 0 || COUNT(CHAT) == PIECES)
       && (ops == 0 || (COUNT(KINDS) && PART(Op, PROGRAM)[ops - 1].op == MATCH))
       && COUNT(ROPE) == (uint64_t)h->S * h->H, "counts");
}

static const void *take(uint64_t bytes) {
  const char *p = PART(char, WEIGHTS) + used;
  bytes = (bytes + 63) / 64 * 64;
  need(bytes <= COUNT(WEIGHTS) - used, "weights: too few");
  used += bytes;
  return p;
}

static Matrix matrix(uint64_t rows, uint64_t cols) {
  Matrix m = {NULL, NULL, rows, cols};
  m.w = take(rows * cols * (h->flags & QUANTISED ? 1 : 4));
  if (h->flags & QUANTISED) m.scale = take(rows * cols / h->group * 4);
  return m;
}

static void load(void) {
  int fd = open(path, O_RDONLY);
  struct stat about;
  if (fd < 0 || fstat(fd, &about) || !S_ISREG(about.st_mode))
    die("cannot read %s: give a model.bin that the export wrote", path);
  need(about.st_size >= (off_t)sizeof *h, "length");
  file = mmap(NULL, about.st_size, PROT_READ, MAP_SHARED, fd, 0);
  if (file == MAP_FAILED) die("cannot map %s into memory", path);
  h = (const Header *)file;
  check(about.st_size);
  uint64_t D = h->D, Q = h->N * h->H, KV = h->K * h->H;
  layers = room(NULL, h->L, sizeof *layers);
  final_norm = take(D * 4);
  for (Layer *l = layers; l < layers + h->L; l++) {
    l->attention_norm = take(D * 4), l->mlp_norm = take(D * 4);
    if (h->flags & QK_NORM)
      l->q_norm = take(h->H * 4), l->k_norm = take(h->H * 4);
    if (h->flags & BIAS) l->bias = take((Q + 2 * KV) * 4);
    l->qkv = matrix(Q + 2 * KV, D), l->o = matrix(D, Q);
    l->gate_up = matrix(2 * h->F, D), l->down = matrix(D, h->F);
  }
  embed = unembed = matrix(h->V, D);
  if (!(h->flags & TIED)) unembed = matrix(h->V, D);
  need(used == COUNT(WEIGHTS), "weights: too many");
}

// --------------------------------------------------------------- the model

// Activations of a block of tokens; the keys and values of all.
static float *x, *qkv, *attended, *hidden, *logits, *keys, *values;
// What a thread multiplies: normed, or in 8 bits with the scale of each group,
// and 128 times its sum, scaled.
static float *normed, *small_scale, *small_shift;
static int8_t *small;
#pragma omp threadprivate(normed, small, small_scale, small_shift)

static void make_room(void) {
  uint64_t D = h->D, Q = h->N * h->H, KV = h->K * h->H, F = h->F, B = BLOCK;
  x = room(NULL, B * D, 4), qkv = room(NULL, B * (Q + 2 * KV), 4);
  attended = room(NULL, B * Q, 4), hidden = room(NULL, B * F, 4);
  logits = room(NULL, B * h->V, 4), keys = room(NULL, h->L * KV * h->S, 4);
  values = room(NULL, h->L * KV * h->S, 4);
#pragma omp parallel
  {
    normed = room(NULL, B * D, 4), small = room(NULL, B * (D + Q + F), 1);
    small_scale = room(NULL, B * (D + Q + F), 4);
    small_shift = room(NULL, B * (D + Q + F), 4);
  }
}

static float dot(const float *a, const float *b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// Of four tokens, for one look at the weights.
static void dot4(float *out, const float *w, const float *v, int n) {
  float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int i = 0; i < n; i++) {
    a += w[i] * v[i], b += w[i] * v[i + n];
    c += w[i] * v[i + 2 * n], d += w[i] * v[i + 3 * n];
  }
  out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// w are weights + 128: products of unsigned and signed bytes are what VNNI
// has an instruction for. `shift` takes the 128 away again.
static inline float dot8(const uint8_t *w, const float *ws, const int8_t *v,
                         const float *vs, const float *shift, int groups,
                         int size) {
  float sum = 0;
#ifdef __AVX512VNNI__
  __m512 sums = _mm512_setzero_ps();
  for (int g = 0; size == 64 && g < groups; g++) {
    __m512i d = _mm512_dpbusd_epi32(
        _mm512_setzero_si512(), _mm512_loadu_si512(w + 64 * g),
        _mm512_loadu_si512(v + 64 * g));
    sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d),
                           _mm512_set1_ps(ws[g] * vs[g]), sums);
    sum -= ws[g] * shift[g];
  }
  if (size == 64) return sum + _mm512_reduce_add_ps(sums);
#endif
  for (int g = 0; g < groups; g++, w += size, v += size) {
    int32_t d = 0;
#pragma omp simd reduction(+ : d)
    for (int i = 0; i < size; i++) d += w[i] * v[i];
    sum += ws[g] * (vs[g] * d - shift[g]);
  }
  return sum;
}

static void quantise(const float *v, int n) {
  for (int g = 0, size = h->group; g < n; g += size) {
    float top = 0, sum = 0;
    for (int i = g; i < g + size; i++) top = fmaxf(top, fabsf(v[i]));
    float scale = top / 127, inverse = top > 0 ? 127 / top : 0;
    for (int i = g; i < g + size; i++)
      sum += small[i] = (int)rintf(fmaxf(-127, fminf(127, v[i] * inverse)));
    small_scale[g / size] = scale, small_shift[g / size] = scale * 128 * sum;
  }
}

static void norm(float *out, const float *v, const float *scale, int n) {
  float by = 1 / sqrtf(dot(v, v, n) / n + h->eps);
  for (int i = 0; i < n; i++) out[i] = v[i] * by * scale[i];
}

// Row r of m times each of T vectors.
static void row(float *y, const float *v, const Matrix *m, size_t r, int T) {
  int n = m->cols, groups = n / h->group;
  for (int t = 0; t < T; t++)
    if (h->flags & QUANTISED)
      y[t] = dot8((const uint8_t *)m->w + r * n, m->scale + r * groups,
                  small + t * n, small_scale + t * groups,
                  small_shift + t * groups, groups, h->group);
    else if (T - t >= 4)
      dot4(y + t, (const float *)m->w + r * n, v + t * n, n), t += 3;
    else
      y[t] = dot((const float *)m->w + r * n, v + t * n, n);
}

// Sets out [T, rows] to v [T, cols] times m, or adds that, or takes the halves
// of the rows for gate and up of SwiGLU. All threads call it, and each prepares
// v for itself: that takes less time than to wait for another.
static void multiply(float *out, const float *v, const float *scale,
                     const Matrix *m, int T, enum mode mode) {
  int n = m->cols, rows = mode == GATE ? m->rows / 2 : m->rows;
  for (int t = 0; scale && t < T; t++)
    norm(normed + t * n, v + t * n, scale, n);
  if (scale) v = normed;
  if (h->flags & QUANTISED) quantise(v, T * n);
#pragma omp for
  for (int r = 0; r < rows; r++) {
    float y[BLOCK], up[BLOCK];
    row(y, v, m, r, T);
    if (mode == GATE) row(up, v, m, r + rows, T);
    for (int t = 0; t < T; t++) {
      float *o = out + t * rows + r;
      if (mode == GATE) *o = y[t] / (1 + expf(-y[t])) * up[t];
      else *o = y[t] + (mode == ADD ? *o : 0);
    }
  }
}

// One head of one token: bias, normalisation, rotation; then to the cache.
static void finish_head(const Layer *l, int head, int at, int position) {
  int H = h->H, N = h->N, K = h->K, half = H / 2, is_value = head >= N + K;
  float *v = qkv + at * H;
  for (int i = 0; l->bias && i < H; i++) v[i] += l->bias[head * H + i];
  if (l->q_norm && !is_value) norm(v, v, head < N ? l->q_norm : l->k_norm, H);
  const float *angle = PART(float, ROPE) + (size_t)position * H;
  for (int i = 0; !is_value && i < half; i++) {
    float a = v[i], b = v[i + half], c = angle[i], s = angle[i + half];
    v[i] = a * c - b * s, v[i + half] = b * c + a * s;
  }
  size_t line = ((l - layers) * K + (head - N) % K) * (size_t)h->S + position;
  if (head >= N) memcpy((is_value ? values : keys) + line * H, v, H * 4);
}

// Softmax in one pass: what is summed shrinks whenever the maximum grows.
static void attend(int layer, int t, int head, int position) {
  int H = h->H, N = h->N, K = h->K, window = h->window;
  int first = window && position >= window ? position - window + 1 : 0;
  size_t cached = ((size_t)layer * K + head / (N / K)) * h->S * H;
  const float *q = qkv + (t * (N + 2 * K) + head) * H;
  const float *k = keys + cached, *v = values + cached;
  float *out = attended + (t * N + head) * H;
  float top = -INFINITY, total = 0, scale = 1 / sqrtf(H);
  memset(out, 0, H * 4);
  for (size_t s = first; s <= (size_t)position; s++) {
    float score = dot(q, k + s * H, H) * scale;
    float less = score > top ? expf(top - score) : 1;
    top = score > top ? score : top;
    float weight = less < 1 ? 1 : expf(score - top);
    for (int i = 0; i < H; i++) out[i] = out[i] * less + weight * v[s * H + i];
    total = total * less + weight;
  }
  for (int i = 0; i < H; i++) out[i] /= total;
}

static float weight(const Matrix *m, size_t at) {
  if (!(h->flags & QUANTISED)) return ((const float *)m->w)[at];
  return (((const uint8_t *)m->w)[at] - 128) * m->scale[at / h->group];
}

// Runs T <= BLOCK tokens from `pos` on; makes the logits of the last, or `all`.
static void forward(const int *tokens, int T, int all) {
  int D = h->D, N = h->N, M = N + 2 * h->K, last = all ? 0 : T - 1;
#pragma omp parallel
  {
#pragma omp for
    for (int i = 0; i < T * D; i++)
      x[i] = weight(&embed, (size_t)tokens[i / D] * D + i % D);
    for (Layer *l = layers; l < layers + h->L; l++) {
      multiply(qkv, x, l->attention_norm, &l->qkv, T, SET);
#pragma omp for
      for (int i = 0; i < T * M; i++) finish_head(l, i % M, i, pos + i / M);
#pragma omp for
      for (int i = 0; i < T * N; i++)
        attend(l - layers, i / N, i % N, pos + i / N);
      multiply(x, attended, NULL, &l->o, T, ADD);
      multiply(hidden, x, l->mlp_norm, &l->gate_up, T, GATE);
      multiply(x, hidden, NULL, &l->down, T, ADD);
    }
    multiply(logits, x + last * D, final_norm, &unembed, T - last, SET);
#pragma omp for
    for (int i = 0; i < (h->cap > 0 ? T - last : 0) * (int)h->V; i++)
      logits[i] = h->cap * tanhf(logits[i] / h->cap);
  }
  pos += T;
}

// ------------------------------------------------------------ texts to ids

typedef struct { size_t start, length; uint32_t id, rank, merged; } Symbol;
static struct { char *s, *said; size_t n; } text;  // said: 1 where somebody's.
static int *ids;
static size_t n_ids;

static void add(const char *s, size_t n, int said) {
  for (; said && h->flags & TRIM && n && isspace((unsigned char)*s); n--) s++;
  while (said && h->flags & TRIM && n && isspace((unsigned char)s[n - 1])) n--;
  text.s = room(text.s, text.n + n, 1);
  text.said = room(text.said, text.n + n, 1);
  memcpy(text.s + text.n, s, n);
  memset(text.said + text.n, said, n);
  text.n += n;
}

// Bytes of the character at p; 0 if more must follow, -1 if it is none.
static int utf8(const char *p, size_t n, uint32_t *code) {
  const unsigned char *s = (const unsigned char *)p;
  int length = *s < 0x80 ? 1 : *s < 0xE0 ? 2 : *s < 0xF0 ? 3 : 4;
  *code = length == 1 ? *s : *s & (0x7F >> length);
  if (*s > 0xF4 || (*s >= 0x80 && *s < 0xC2)) return -1;
  for (int i = 1; i < length; i++) {
    if ((size_t)i == n) return 0;
    *code = *code << 6 | (s[i] & 63);
    if ((s[i] & 0xC0) != 0x80
        || (i == 1 && length == 3 && (*code < 0x20 || *code >> 5 == 0x1B))
        || (i == 1 && length == 4 && (*code < 0x10 || *code > 0x10F)))
      return -1;
  }
  return length;
}

// The last record of 16 bytes that begins with a number up to the key.
static const void *search(int section, uint64_t key) {
  size_t low = 0, high = COUNT(section), middle;
  while (middle = (low + high) / 2, high - low > 1)
    if (PART(uint64_t, section)[2 * middle] <= key) low = middle;
    else high = middle;
  return PART(uint64_t, section) + 2 * low;
}

// Where the match of a pattern at i ends (i: there is none). The pattern is a
// program, as in Thompson (1968), with backtracking.
static size_t match(uint32_t pc, size_t i, size_t end) {
  static struct { uint32_t pc; size_t i; } *stack;
  size_t start = i, top = 0;
  for (size_t steps = 1000 * (end - i + 1); steps; steps--) {
    const Op *o = PART(Op, PROGRAM) + pc++;
    uint32_t code = 0;
    int n = i < end && o->kinds ? utf8(text.s + i, end - i, &code) : 0;
    int in = n > 0 && o->kinds >> ((Range *)search(KINDS, code))->kind & 1;
    if (o->op == MATCH) return i;
    if (o->op == JUMP) pc = o->to;
    else if (o->op == SPAN) i += in ? n : 0, pc -= in;
    else if (o->op == SPLIT) {
      if (!(top & (top - 1))) stack = room(stack, 2 * top, sizeof *stack);
      stack[top].pc = o->other, stack[top++].i = i, pc = o->to;
    } else if (in == (o->op == NOT_AHEAD)) {
      if (!top) return start;
      pc = stack[--top].pc, i = stack[top].i;
    } else if (o->op == TAKE) i += n;
  }
  need(0, "patterns");
  return start;
}

static void pair(Symbol *s) {  // What s and the next one may become.
  uint64_t key = (uint64_t)s->id << 32 | s[1].id;
  const Merge *m = search(MERGES, key);
  int found = COUNT(MERGES) && m->key == key;
  s->rank = found ? m->rank : UINT32_MAX, s->merged = found ? m->id : 0;
}

static int starts(size_t i, size_t end, Piece p) {
  return p.length <= end - i
      && !memcmp(text.s + i, PART(char, BYTES) + p.start, p.length);
}

// Byte pair encoding of what no boundary cuts. Ids from V on stand for a part
// of a character: they are made of merges, and bytes again if left over.
static void word(size_t a, size_t b) {
  const uint32_t *bytes = PART(uint32_t, BYTE_IDS), *w = PART(uint32_t, WORDS);
  for (size_t k = 0; k < COUNT(WORDS); k++) {  // What merges do not lead to.
    Piece t = PART(Piece, TOKENS)[w[k]];
    if (t.length != b - a || !starts(a, b, t)) continue;
    ids[n_ids++] = w[k];
    return;
  }
  Symbol *y = room(NULL, b - a + 1, sizeof *y);
  size_t n = 0, k, best, i;
  if (h->flags & DUMMY) y[n++] = (Symbol){a, 0, bytes[' '], UINT32_MAX, 0};
  for (i = a; i < b; i++) {
    y[n] = (Symbol){i, 1, bytes[(unsigned char)text.s[i]], UINT32_MAX, 0};
    n += y[n].id < h->V;
  }
  for (k = 0; k + 1 < n; k++) pair(y + k);
  for (; n > 1; n--) {
    for (best = 0, k = 1; k + 1 < n; k++)
      if (y[k].rank < y[best].rank) best = k;
    if (y[best].rank == UINT32_MAX) break;
    y[best].length += y[best + 1].length, y[best].id = y[best].merged;
    memmove(y + best + 1, y + best + 2, (n - best - 2) * sizeof *y);
    y[best].rank = UINT32_MAX;
    if (best + 2 < n) pair(y + best);
    if (best) pair(y + best - 1);
  }
  for (k = 0; k < n; k++)
    if (y[k].id < h->V) ids[n_ids++] = y[k].id;
    else for (i = y[k].start; i < y[k].start + y[k].length; i++)
      if ((best = bytes[(unsigned char)text.s[i]]) < h->V) ids[n_ids++] = best;
  free(y);
}

// Cuts text [a, b): at added tokens (levels 0 and 1), by patterns, to words.
static void encode(size_t a, size_t b, uint32_t level) {
  size_t done = a, words = 2 + COUNT(STAGES);
  if (a < b && level == words) word(a, b);
  for (size_t i = a, end = a; i < b && level < words; i = end) {
    const Added *t = PART(Added, ADDED), *last = t + COUNT(ADDED);
    while (level < 2 && t < last
           && !(t->pass == level && starts(i, b, t->text))) t++;
    int found = level < 2 && t < last;
    if (found) end = i + t->text.length;
    if (level >= 2) end = match(PART(uint32_t, STAGES)[level - 2], i, b);
    int plain = found && t->special && memchr(text.said + i, 1, end - i);
    if (end > i && (!plain || h->flags & CUT)) {
      encode(done, i, level + 1);
      if (!found) encode(i, end, level + 1);
      else if (!plain) ids[n_ids++] = t->id;
      else encode(i, i + 2, level + 1), encode(i + 2, end, level + 1);
      done = end;
    }
    uint32_t code;
    int n = end > i ? 0 : utf8(text.s + i, b - i, &code);
    if (end == i) end += n > 0 ? n : 1;
  }
  if (level < words) encode(done, b, level + 1);
}

static void encode_text(const int *prefix, size_t n) {
  uint32_t code;
  for (size_t i = 0; i < text.n; i += utf8(text.s + i, text.n - i, &code))
    if (utf8(text.s + i, text.n - i, &code) < 1)
      die("the text is not UTF-8 at byte %zu", i);
  ids = room(ids, n + 2 * text.n, sizeof *ids);
  for (n_ids = 0; n_ids < n; n_ids++) ids[n_ids] = prefix[n_ids];
  encode(0, text.n, 0);
}

// ------------------------------------------------------------- ids to text

static void say(const char *s, size_t n, int last) {
  static char waiting[4];  // The bytes of a character that is not whole yet.
  static int have;
  uint32_t code;
  for (size_t i = 0; i < n; i++) {
    waiting[have++] = s[i];
    int length = utf8(waiting, have, &code);
    if (length > 0) fwrite(waiting, 1, have, stdout);
    if (length < 0) fputs("\xEF\xBF\xBD", stdout), i -= have > 1;
    if (length) have = 0;
  }
  if (last && have) fputs("\xEF\xBF\xBD", stdout), have = 0;
  fflush(stdout);
}

// The next token: the likeliest, or drawn among the likeliest that make up P.
static int choose(void) {
  int V = h->V, best = 0, i;
  for (i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
  float top = logits[best], cut = 0;
  need(isfinite(top), "weights: no number comes out");
  if (temperature <= 0) return best;
  double total = 0, sum = 0;
  for (i = 0; i < V; i++)
    total += logits[i] = fmaxf(0, expf((logits[i] - top) / temperature));
  for (float step = 0.5; top_p < 1 && step > 1e-7; step /= 2) {  // Bisection.
    for (i = 0, sum = 0; i < V; i++)
      if (logits[i] >= cut + step) sum += logits[i];
    if (sum >= top_p * total) cut += step;
  }
  for (i = 0, sum = 0; i < V; i++) if (logits[i] >= cut) sum += logits[i];
  uint64_t z = seed += 0x9E3779B97F4A7C15u;  // SplitMix64.
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  sum *= ((z ^ z >> 31) >> 11) * 0x1p-53;
  for (i = 0; i < V; i++)
    if (logits[i] >= cut && (sum -= logits[i]) < 0) return i;
  return best;
}

// Reads the ids; writes what follows, or else the logits of all.
static void generate(int raw) {
  if (!n_ids) die("there is nothing to read: give a text that is not empty");
  if (n_ids > (size_t)(h->S - pos))
    die("the text has %zu tokens, and %ld of the context's %u are left: give"
        " less", n_ids, h->S - pos, h->S);
  double start = omp_get_wtime();
  for (size_t i = 0, T; i < n_ids; i += T) {
    T = n_ids - i < BLOCK ? n_ids - i : BLOCK;
    forward(ids + i, T, raw);
    if (raw) fwrite(logits, 4, T * h->V, stdout);
  }
  time_in += omp_get_wtime() - start, tokens_in += n_ids;
  start = omp_get_wtime();
  for (int n = raw ? 0 : most, id; n; n--) {
    id = choose();
    for (size_t i = 0; i < COUNT(EOS); i++) if (PART(int, EOS)[i] == id) n = 0;
    if (n == 0) break;
    Piece t = PART(Piece, TOKENS)[id];
    say(PART(char, BYTES) + t.start, t.length, 0);
    tokens_out++;
    if (pos == h->S) break;
    forward(&id, 1, 0);
  }
  say("", 0, 1);
  time_out += omp_get_wtime() - start;
}

static void add_piece(int which) {
  Piece p = PART(Piece, CHAT)[which];
  add(PART(char, BYTES) + p.start, p.length, 0);
}

static double number(char **option, double low, double high) {
  char *end = NULL, *s = option[1] ? option[1] : "";
  double v = strtod(s, &end);
  if (end == s || *end || !(v >= low && v <= high)
      || (strchr("ns", option[0][1]) && v != floor(v)))
    die("%s needs a number from %g to %g", *option, low, high);
  return v;
}

int main(int count, char **args) {
  char *prompt = NULL, *system = NULL, *line = NULL, *mode = "", *a;
  // A thread that spins for long loses its turn to whatever else runs here.
  if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")
      && !setenv("GOMP_SPINCOUNT", "200", 1))
    execv("/proc/self/exe", args);  // It is read before main.
  for (int i = 1; i < count; i++) {
    a = args[i];
    if (!strcmp(a, "--help") || !strcmp(a, "-h")) return puts(USAGE) < 0;
    else if (!strcmp(a, "-n")) most = number(args + i++, 0, 1e9);
    else if (!strcmp(a, "-t")) temperature = number(args + i++, 0, 1e6);
    else if (!strcmp(a, "-p")) top_p = number(args + i++, 0, 1);
    else if (!strcmp(a, "-s")) seed = number(args + i++, 0, 9e15);
    else if (!strcmp(a, "--system") && i + 1 < count) system = args[++i];
    else if (!strcmp(a, "-c") || !strcmp(a, "--logits") || !strcmp(
        a, "--tokenize") || !strcmp(a, "--tokenize-content")) mode = a;
    else if (*a == '-') die("%s is no option, see --help", a);
    else if (!path) path = a;
    else if (!prompt) prompt = a;
    else die("one prompt only: put it between quotation marks");
  }
  if (!path) die("which model.bin? see --help");
  load();
  int chat = !strcmp(mode, "-c"), raw = !strcmp(mode, "--logits"), turn = 0;
  if (!*mode == !prompt) die("give a prompt, or else a mode; see --help");
  if (chat && !COUNT(CHAT)) die("%s holds no chat template: no -c", path);
  make_room();
  if (!*mode) {
    most = most < 0 ? 256 : most;
    add(prompt, strlen(prompt), 0);
    encode_text(PART(int, PREFIX), COUNT(PREFIX));
    generate(0);
    puts("");
  }
  for (long id; raw && scanf("%ld", &id) == 1; ids[n_ids++] = id) {
    if (id < 0 || id >= h->V) die("%ld is no token", id);
    ids = room(ids, n_ids + 1, sizeof *ids);
  }
  if (raw) generate(1);
  size_t size = 0;
  for (ssize_t n; *mode && !raw; turn = 1, puts("")) {
    if (chat && isatty(0)) fputs("> ", stderr);
    if ((n = getdelim(&line, &size, chat ? '\n' : 0, stdin)) <= 0) break;
    n -= line[n - 1] == (chat ? '\n' : 0);
    text.n = 0;
    if (chat) add_piece(turn ? NEXT : system ? SYSTEM : FIRST);
    if (chat && system && !turn)
      add(system, strlen(system), 1), add_piece(AFTER_SYSTEM);
    add(line, n, chat || mode[10]);
    if (chat) add_piece(ANSWER);
    encode_text(NULL, 0);
    if (chat) generate(0);
    for (size_t i = 0; !chat && i < n_ids; i++) printf("%d ", ids[i]);
  }
  if (tokens_in && !raw)
    fprintf(stderr, "read %ld tokens (%.1f a second), wrote %ld (%.1f a second)"
            "\n", tokens_in, tokens_in / time_in, tokens_out,
            tokens_out / (time_out + 1e-9));
  return 0;
}
