// Runs a language model: this file and a model.bin, nothing else.
//   cc -O3 -march=native -fopenmp run.c -lm -o run
//   ./run model.bin "Once upon a time"
// What model.bin holds is told in lm/interop/two_file.py, which wrote it.
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
    "  --logits       writes float32 [tokens of the prompt, vocabulary]\n"
    "  --tokenize     reads texts, NUL after each, prints ids (-c: as said)";
enum { N_TOKENS, TEMPERATURE, TOP_P, SEED, CHAT, LOGITS, TOKENIZE, OPTIONS };
static struct { const char *name; double value, high; } options[] = {
    {"-n", -1, 1e9}, {"-t", 0, 1e6}, {"-p", 1, 1}, {"-s", 0, 9e15},
    {"-c", 0, 0}, {"--logits", 0, 0}, {"--tokenize", 0, 0}};
#define OPTION(name) (options[name].value)
#define die(...) (fflush(stdout), fprintf(stderr, "run: " __VA_ARGS__), \
                  fputc('\n', stderr), exit(2))
#define need(good, what) \
  if (!(good)) die("%s is damaged (its %s): export it again", path, what)

enum { INT8 = 1, TIED = 2, QK_NORM = 4, CHATS = 8, TRIM = 16, DUMMY = 32 };
enum { FIRST, SYSTEM, AFTER_SYSTEM, ANSWER, NEXT, PIECES };  // Of a chat.
enum { ATTENTION_NORM, MLP_NORM, Q_NORM, K_NORM, BIAS, QKV, O, GATE_UP, DOWN,
       TENSORS };  // Of a layer.
enum { SET, ADD, GATE, CAP, BLOCK = 16, WHOLE = 2, INSIDE = 62, END, KINDS };
// V tokens (`mark`: a text ends), the pieces of a chat, what encode() looks for
// at a level (`mark`: where said it is 0 the same, 1 text, 2 text that is cut).
typedef struct { uint32_t start, length, id, level, mark; } Text;
typedef struct { uint64_t key; uint32_t rank, id; } Merge;
typedef struct {
  uint64_t magic, checksum;
  uint32_t flags, group, V, D, L, N, K, H, F, S, window, texts, bytes, prefix,
           merges, states, nodes, stages;
  float eps, cap;
} Header;
typedef struct { const void *w; const float *scale; int rows, cols; } Matrix;
static const char *path, *file, *bytes;
static uint64_t size, used;  // Of the file.
static const Header *h;
static const Text *texts;
static const Merge *merges;
static const uint32_t *byte_ids, *states, *chars;
static const float *rope;
static Matrix layers[TENSORS << 10], embed, unembed, final_norm;
// Activations of a block of tokens; the keys and values of all.
static float *x, *qkv, *attended, *hidden, *logits, *cache;
// What a thread multiplies: normed; in bytes, with scales for groups of them.
typedef struct { float scale; int32_t shift; } Group;  // shift: -128 * sum.
static struct { float *normed; int8_t *bytes; Group *groups; } my;
#pragma omp threadprivate(my)

static void *room(void *old, uint64_t n) {
  void *p = realloc(old, n + 1);  // Pages never written cost nothing.
  if (!p) die("not enough memory: %.0f MB are too many", n / 1e6);
  return p;
}
static const void *take(uint64_t n) {  // The next part of the file.
  uint64_t at = used, room = (n + 63) / 64 * 64;
  need(room <= size - used, "length");
  used += room;
  return file + at;
}
// An array of records of numbers, none of which is over that of its field.
static const void *table(uint64_t count, int fields, const uint32_t *most) {
  const uint32_t *p = take(count * fields * 4);
  for (uint64_t i = 0; i < count * fields; i++)
    need(p[i] <= most[i % fields], "numbers");
  return p;
}
static Matrix tensor(uint64_t rows, uint64_t cols) {
  int in_bytes = h->flags & INT8 && rows > 1;
  Matrix m = {take(rows * cols * (in_bytes ? 1 : 4)), NULL, rows, cols};
  if (in_bytes) m.scale = take(rows * cols / h->group * 4);
  return m;
}

static void load(void) {
  int fd = open(path, O_RDONLY);
  size = lseek(fd, 0, SEEK_END);
  file = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
  if (file == MAP_FAILED)
    die("cannot read %s: give a model.bin that the export wrote", path);
  h = take(sizeof *h);
  need(!memcmp(h, "lm2file2", 8), "first bytes, or version");
  const uint32_t *n = &h->flags, any = UINT32_MAX, most[] = {
      63, 64, 1 << 22, 1 << 17, 1 << 10, 1 << 10, 1 << 10, 1 << 10, 1 << 19,
      1 << 24, h->S, any, any, h->S - 1, any, 1 << 20, 1 << 20, 16};
  for (int i = 0; i < 18; i++)
    need(n[i] <= most[i] && (n[i] || i < 1 || i > 10), "shape");
  uint64_t B = BLOCK, D = h->D, H = h->H, F = h->F, Q = h->N * H;
  uint64_t KV = h->K * H, M = Q + 2 * KV, sum = 0xCBF29CE484222325u;
  need(h->N % h->K == 0 && H % 2 == 0 && h->eps >= 0 && h->cap >= 0 && h->nodes
       && D % h->group + Q % h->group + F % h->group == 0
       && h->texts >= h->V + PIECES && h->states > h->stages, "shape");
  texts = table(h->texts, 5, (uint32_t[]){any, any, h->V - 1, WHOLE, 2});
  bytes = take(h->bytes), byte_ids = table(256 + h->prefix, 1, &h->V);
  merges = table(h->merges, 4, (uint32_t[]){any, any, any, any});
  states = table(h->states * KINDS, 1, (uint32_t[]){2 * h->states - 1});
  chars = table(h->nodes * 256, 1, (uint32_t[]){KINDS + h->nodes - 1});
  for (const Text *t = texts; t < texts + h->texts; t++)
    need(t->start <= h->bytes && t->length <= h->bytes - t->start
         && (t - texts < h->V + PIECES || t->length > t->mark / 2), "texts");
  for (uint64_t i = 0; i < used / 8; i++)  // FNV-1a, of words of 8 bytes.
    sum = i == 1 ? sum : (sum ^ ((const uint64_t *)file)[i]) * 0x100000001B3u;
  need(h->checksum == sum, "checksum");
  rope = take(h->S * H * 4);
  const uint64_t normed = h->flags & QK_NORM ? 1 : 0, shapes[TENSORS][2] = {
      {1, D}, {1, D}, {normed, H}, {normed, H}, {1, M}, {M, D}, {D, Q},
      {2 * F, D}, {D, F}};
  for (uint32_t i = 0; i < h->L * TENSORS; i++)
    layers[i] = tensor(shapes[i % TENSORS][0], shapes[i % TENSORS][1]);
  final_norm = tensor(1, D), embed = tensor(h->V, D);
  unembed = h->flags & TIED ? embed : tensor(h->V, D);
  need(used == size, "length");
  x = room(NULL, B * D * 4), qkv = room(NULL, B * M * 4);
  attended = room(NULL, B * Q * 4), hidden = room(NULL, B * F * 4);
  logits = room(NULL, B * h->V * 4), cache = room(NULL, h->L * KV * h->S * 8);
#pragma omp parallel
  my.normed = room(NULL, B * D * 4), my.bytes = room(NULL, B * (D + Q + F)),
  my.groups = room(NULL, B * (D + Q + F) * sizeof(Group));
}

// --------------------------------------------------------------- the model
static float dot(const float *a, const float *b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// Row r of m times token t of v, or its bytes. VNNI multiplies signed ones by
// unsigned ones: weights are w + 128, and the shift takes that away again.
static float product(const Matrix *m, size_t r, const float *v, int t) {
  int cols = m->cols, size = h->group, n = cols / size, g = 0;
  if (!m->scale) return dot((float *)m->w + r * cols, v + t * cols, cols);
  const uint8_t *w = (const uint8_t *)m->w + r * cols;
  const int8_t *b = my.bytes + t * cols;
  const float *scale = m->scale + r * n;
  const Group *group = my.groups + t * n;
  float sum = 0;
#ifdef __AVX512VNNI__
  __m512 sums = _mm512_setzero_ps();
  for (; size == 64 && g < n; g++) {
    __m512i d = _mm512_zextsi128_si512(_mm_cvtsi32_si128(group[g].shift));
    d = _mm512_dpbusd_epi32(d, _mm512_loadu_si512(w + 64 * g),
                            _mm512_loadu_si512(b + 64 * g));
    sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d),
                           _mm512_set1_ps(scale[g] * group[g].scale), sums);
  }
  sum = _mm512_reduce_add_ps(sums);
#endif
  for (; g < n; g++) {
    int32_t d = group[g].shift;
    for (int i = g * size; i < (g + 1) * size; i++) d += w[i] * b[i];
    sum += scale[g] * group[g].scale * d;
  }
  return sum;
}

static void quantise(const float *v, int n) {
  for (int g = 0, size = h->group; g < n / size; g++, v += size) {
    float top = 0, sum = 0;
#pragma omp simd reduction(max : top)
    for (int i = 0; i < size; i++) top = fabsf(v[i]) > top ? fabsf(v[i]) : top;
    float to_byte = top > 0 ? 127 / top : 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < size; i++) {
      float y = v[i] * to_byte < 127 ? v[i] * to_byte : 127;  // If NaN, too.
      sum += my.bytes[g * size + i] = (int)rintf(y > -127 ? y : -127);
    }
    my.groups[g] = (Group){top / 127, (int)(-128 * sum)};
  }
}
static void norm(float *out, const float *v, const float *scale, int n) {
  float by = 1 / sqrtf(dot(v, v, n) / n + h->eps);
  for (int i = 0; i < n; i++) out[i] = v[i] * by * scale[i];
}

// Sets out [T, rows] to v [T, cols] times m; or adds or caps that; or takes the
// halves for SwiGLU. Each thread prepares v itself: waiting would be slower.
static void multiply(float *out, const float *v, const Matrix *scale,
                     const Matrix *m, int T, int mode) {
  int n = m->cols, rows = mode == GATE ? m->rows / 2 : m->rows;
  for (int t = 0; scale && t < T; t++)
    norm(my.normed + t * n, v + t * n, scale->w, n);
  if (scale) v = my.normed;
  if (m->scale) quantise(v, T * n);
#pragma omp for
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < T; t++) {
      float y = product(m, r, v, t), *o = out + t * rows + r;
      *o = mode == GATE ? y / (1 + expf(-y)) * product(m, r + rows, v, t)
          : mode == CAP && h->cap > 0 ? h->cap * tanhf(y / h->cap)
          : mode == ADD ? *o + y : y;
    }
}

// One head of one token: bias, normalisation, rotation; then to the cache.
static void finish_head(int layer, int head, int at, int position) {
  int H = h->H, N = h->N, K = h->K, half = H / 2, is_value = head >= N + K;
  const Matrix *l = layers + layer * TENSORS;
  const Matrix *scale = l + (head < N ? Q_NORM : K_NORM);
  const float *c = rope + (size_t)position * H, *s = c + half;
  float *v = qkv + at * H;
  for (int i = 0; i < H; i++) v[i] += ((const float *)l[BIAS].w)[head * H + i];
  if (scale->rows && !is_value) norm(v, v, scale->w, H);
  for (int i = 0; !is_value && i < half; i++) {
    float a = v[i], b = v[i + half];
    v[i] = a * c[i] - b * s[i], v[i + half] = b * c[i] + a * s[i];
  }
  size_t line = ((size_t)layer * 2 * K + head - N) * h->S + position;
  if (head >= N) memcpy(cache + line * H, v, H * 4);
}

// Softmax in one pass: what is summed shrinks whenever the maximum grows.
static void attend(int layer, int head, int t, int position) {
  int H = h->H, N = h->N, K = h->K, window = h->window;
  int first = position < window ? 0 : position - window + 1;
  size_t S = h->S, line = ((size_t)layer * 2 * K + head / (N / K)) * S + first;
  const float *k = cache + line * H, *v = k + K * S * H;
  const float *q = qkv + (t * (N + 2 * K) + head) * H;
  float *out = attended + (t * N + head) * H;
  float top = -INFINITY, total = 0, scale = 1 / sqrtf(H);
  memset(out, 0, H * 4);
  for (int at = first; at <= position; at++, k += H, v += H) {
    float score = dot(q, k, H) * scale;
    float less = score > top ? expf(top - score) : 1;
    top = score > top ? score : top;
    float weight = less < 1 ? 1 : expf(score - top);
    for (int i = 0; i < H; i++) out[i] = out[i] * less + weight * v[i];
    total = total * less + weight;
  }
  for (int i = 0; i < H; i++) out[i] /= total;
}

// Runs T <= BLOCK tokens from `pos` on; makes the logits of the last, or `all`.
static void forward(const int *tokens, int T, int pos, int all) {
  int D = h->D, N = h->N, M = N + 2 * h->K, last = all ? 0 : T - 1;
#pragma omp parallel
  {
#pragma omp for
    for (int i = 0; i < T * D; i++) {
      size_t at = (size_t)tokens[i / D] * D + i % D;
      x[i] = !embed.scale ? ((const float *)embed.w)[at]
          : (((const uint8_t *)embed.w)[at] - 128) * embed.scale[at / h->group];
    }
    for (uint32_t l = 0; l < h->L; l++) {
      const Matrix *m = layers + l * TENSORS;
      multiply(qkv, x, m + ATTENTION_NORM, m + QKV, T, SET);
#pragma omp for
      for (int i = 0; i < T * M; i++) finish_head(l, i % M, i, pos + i / M);
#pragma omp for
      for (int i = 0; i < T * N; i++) attend(l, i % N, i / N, pos + i / N);
      multiply(x, attended, NULL, m + O, T, ADD);
      multiply(hidden, x, m + MLP_NORM, m + GATE_UP, T, GATE);
      multiply(x, hidden, NULL, m + DOWN, T, ADD);
    }
    multiply(logits, x + last * D, &final_norm, &unembed, T - last, CAP);
  }
}

// ------------------------------------------------------------ texts to ids
typedef struct { size_t start; uint32_t id, rank, merged; } Symbol;
// said: 1 where somebody's. kind: of the character that begins there.
static struct { char *s, *said, *kind; size_t n; } text;
static struct { int *id; size_t n; } ids;

static void add(const char *s, size_t n, int said) {
  const char *spaces = said && h->flags & TRIM ? " \t\n\v\f\r" : "";
  for (; n && *s && strchr(spaces, *s); n--) s++;
  while (n && s[n - 1] && strchr(spaces, s[n - 1])) n--;
  text.s = room(text.s, text.n + n);
  text.said = room(text.said, text.n + n);
  text.kind = room(text.kind, text.n + n);
  memcpy(text.s + text.n, s, n);
  memset(text.said + text.n, said, n);
  memset(text.kind + text.n, INSIDE, n);
  for (size_t i = 0, start = 0, node = 0; i < n; i++) {
    node = chars[256 * node + (unsigned char)s[i]];
    if (node == END || (i == n - 1 && node > END)) die("a text is not UTF-8");
    if (node < KINDS) text.kind[text.n + start] = node, start = i + 1;
    node = node < KINDS ? 0 : node - KINDS;
  }
  text.n += n;
}

// Where the match of a pattern at i ends (i: there is none). The patterns are
// one automaton: by state and kind of character, 2 * next state + `matched`.
static size_t match(uint32_t state, size_t i, size_t end) {
  size_t found = i;
  for (; state && i <= end; i++, state /= 2) {
    state = states[KINDS * state + (i < end ? text.kind[i] : END)];
    if (state & 1) found = i;
  }
  return found;
}

// The first text of a level that is at a; at WHOLE, it must go up to b.
static const Text *find(uint32_t level, size_t a, size_t b) {
  for (const Text *t = texts + h->V + PIECES; t < texts + h->texts; t++)
    if (t->level == level && t->length <= b - a
        && (level < WHOLE || t->length == b - a)
        && !memcmp(text.s + a, bytes + t->start, t->length))
      return t;
  return NULL;
}
static void put(uint32_t id) {  // Some vocabularies leave out some bytes.
  if (id < h->V) ids.id[ids.n++] = id;
}
static void pair(Symbol *s) {  // What s and the next one may become.
  uint64_t key = (uint64_t)s->id << 32 | s[1].id;
  const Merge *m = merges, *end = m + h->merges;
  for (size_t n = h->merges; n; n /= 2)
    if (m[n / 2].key < key) m += n / 2 + 1, n--;
  int found = m < end && m->key == key;
  s->rank = found ? m->rank : UINT32_MAX, s->merged = found ? m->id : 0;
}

// Byte pair encoding of what no boundary cuts. Ids from V on stand for a part
// of a character: they are made of merges, and bytes again if left over.
static void word(size_t a, size_t b) {
  const Text *whole = find(WHOLE, a, b);  // Merges do not lead there.
  if (whole) put(whole->id), b = a;
  Symbol *y = room(NULL, (b - a + 2) * sizeof *y);
  size_t n = 0, best, k, i;
  if (h->flags & DUMMY && !whole) y[n++] = (Symbol){a, byte_ids[' '], 0, 0};
  for (i = a; i < b; i++) {
    y[n] = (Symbol){i, byte_ids[(unsigned char)text.s[i]], 0, 0};
    n += y[n].id < h->V;
  }
  y[n] = (Symbol){b, UINT32_MAX, 0, 0};  // It ends what can be merged.
  for (k = 0; k < n; k++) pair(y + k);
  while (n) {
    for (best = 0, k = 1; k < n; k++) if (y[k].rank < y[best].rank) best = k;
    if (y[best].rank == UINT32_MAX) break;
    y[best].id = y[best].merged;
    memmove(y + best + 1, y + best + 2, (--n - best) * sizeof *y);
    for (k = best ? best - 1 : 0; k <= best; k++) pair(y + k);
  }
  for (k = 0; k < n; k++)
    if (y[k].id < h->V) put(y[k].id);
    else for (i = y[k].start; i < y[k + 1].start; i++)
      put(byte_ids[(unsigned char)text.s[i]]);
  free(y);
}

// Cuts text [a, b): by what is found (levels 0, 1), by patterns, to words.
static void encode(size_t a, size_t b, uint32_t level) {
  if (a >= b) return;
  if (level == 2 + h->stages) word(a, b), b = a;
  size_t done = a;
  for (size_t i = a, end; i < b; i = end) {
    const Text *t = level < 2 ? find(level, i, b) : NULL;
    int plain = t && t->mark && memchr(text.said + i, 1, t->length);
    end = t ? i + t->length : level < 2 ? i : match(level - 1, i, b);
    if (end == i) end++;
    else if (!plain || t->mark == 2) {
      encode(done, i, level + 1);
      if (!t) encode(i, end, level + 1);
      else if (!plain) put(t->id);
      else encode(i, i + 2, level + 1), encode(i + 2, end, level + 1);
      done = end;
    }
  }
  encode(done, b, level + 1);
}

// ------------------------------------------------------------- ids to text
static long pos, tokens_in, tokens_out;  // pos: in the cache.
static double time_in, time_out;

static void say(const char *s, size_t n) {  // Whole characters only.
  static char waiting[4];
  static uint32_t node, have;
  for (size_t i = 0; i < n; i++) {
    waiting[have++] = s[i];
    node = chars[256 * node + (unsigned char)s[i]];
    if (node > END && have < 4) node -= KINDS;
    else if (node < END) fwrite(waiting, 1, have, stdout), have = node = 0;
    else fputs("\xEF\xBF\xBD", stdout), i -= have > 1, have = node = 0;
  }
  if (!s && have) fputs("\xEF\xBF\xBD", stdout), have = node = 0;
  fflush(stdout);
}

// The next token: the likeliest, or drawn, again and again until it is one of
// the likeliest that together have top_p.
static int choose(void) {
  static uint64_t drawn;
  int V = h->V, best = 0, i;
  for (i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
  float top = logits[best], cold = 1 / OPTION(TEMPERATURE);
  need(isfinite(top), "weights: no number comes out");
  if (OPTION(TEMPERATURE) == 0 || OPTION(TOP_P) == 0) return best;
  double total = 0, above = INFINITY, left;
  for (i = 0; i < V; i++)
    total += logits[i] = fmaxf(0, expf((logits[i] - top) * cold));
  while (above > OPTION(TOP_P) * total) {  // SplitMix64:
    uint64_t z = (uint64_t)OPTION(SEED) + ++drawn * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    left = total * ((z ^ z >> 31) >> 11) * 0x1p-53, above = 0;
    for (best = 0; best < V - 1 && (left -= logits[best]) >= 0; best++) {}
    for (i = 0; i < V; i++) above += logits[i] > logits[best] ? logits[i] : 0;
  }
  return best;
}

// Reads the text; writes what follows, or else the logits of all its tokens.
static void generate(long most) {
  if (!ids.n || ids.n > (size_t)(h->S - pos))
    die("the text has %zu tokens: give 1 to %ld, what is left of the context",
        ids.n, h->S - pos);
  time_in -= omp_get_wtime(), tokens_in += ids.n;
  for (size_t i = 0, T; i < ids.n; i += T, pos += T) {
    T = ids.n - i < BLOCK ? ids.n - i : BLOCK;
    forward(ids.id + i, T, pos, OPTION(LOGITS));
    if (OPTION(LOGITS)) fwrite(logits, 4, T * h->V, stdout);
  }
  time_in += omp_get_wtime(), time_out -= omp_get_wtime();
  for (int id; most && !OPTION(LOGITS); most--) {
    const Text *t = texts + (id = choose());
    if (!t->mark) say(bytes + t->start, t->length), tokens_out++;
    if (t->mark || pos == h->S) break;
    forward(&id, 1, pos++, 0);
  }
  say(NULL, 0);
  time_out += omp_get_wtime();
}

#define PIECE(k) bytes + texts[h->V + k].start, texts[h->V + k].length, 0

int main(int count, char **args) {
  char *prompt = NULL, *system = NULL, *line = NULL, *end;
  // Threads that spin lose their turns to whatever else runs here.
  if (!getenv("OMP_WAIT_POLICY") && !setenv("OMP_WAIT_POLICY", "passive", 1))
    execv("/proc/self/exe", args);  // It is read before main.
  for (int i = 1, k; i < count; i += k <= SEED ? 2 : 1) {
    char *a = args[i], *next = i + 1 < count ? args[i + 1] : "";
    for (k = 0; k < OPTIONS && strcmp(a, options[k].name);) k++;
    if (k <= SEED) {
      double v = OPTION(k) = strtod(next, &end), high = options[k].high;
      if (end == next || *end || !(v >= 0 && v <= high)
          || ((k == N_TOKENS || k == SEED) && v != floor(v)))
        die("%s needs a number from 0 to %g", a, high);
    } else if (k < OPTIONS) OPTION(k) = 1;
    else if (!strcmp(a, "--help")) return puts(USAGE) < 0;
    else if (!strcmp(a, "--system") && i + 1 < count) system = args[++i];
    else if (*a == '-') die("%s is no option, see --help", a);
    else if (!path) path = a;
    else if (!prompt) prompt = a;
    else die("one prompt only: put it between quotation marks");
  }
  int tokenize = OPTION(TOKENIZE), chat = OPTION(CHAT) && !tokenize;
  if (!path || !prompt != (chat || tokenize))
    die("give a model.bin and a prompt, or else -c or --tokenize; see --help");
  load();
  if (chat && !(h->flags & CHATS)) die("%s has no chat template", path);
  if (prompt && OPTION(N_TOKENS) < 0) OPTION(N_TOKENS) = 256;
  size_t max = 0;
  for (int turn = 0, stop = tokenize ? 0 : '\n'; !prompt || !turn; turn++) {
    if (chat && isatty(0)) fputs("> ", stderr);
    long n = prompt ? (long)strlen(prompt) : getdelim(&line, &max, stop, stdin);
    if (!prompt && (n <= 0 || (n -= line[n - 1] == stop) < 0)) break;
    text.n = ids.n = 0;
    if (chat) add(PIECE((turn ? NEXT : system ? SYSTEM : FIRST)));
    if (chat && system && !turn)
      add(system, strlen(system), 1), add(PIECE(AFTER_SYSTEM));
    add(prompt ? prompt : line, n, OPTION(CHAT));
    if (chat) add(PIECE(ANSWER));
    ids.id = room(ids.id, (h->prefix + 2 * text.n) * sizeof *ids.id);
    for (uint32_t i = 0; prompt && i < h->prefix; i++) put(byte_ids[256 + i]);
    encode(0, text.n, 0);
    for (size_t i = 0; tokenize && i < ids.n; i++) printf("%d ", ids.id[i]);
    if (!tokenize) generate(OPTION(N_TOKENS));
    if (!OPTION(LOGITS)) puts("");
  }
  if (!OPTION(LOGITS) && !tokenize)
    fprintf(stderr, "read %ld tokens (%.1f a second), wrote %ld (%.1f)\n",
            tokens_in, tokens_in / time_in, tokens_out, tokens_out / time_out);
  return 0;
}
