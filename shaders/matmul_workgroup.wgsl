// Matrix product in workgroup memory, for GPUs: C (+)= act(A·B + bias) + residual for the layouts NN (A [M, K],
// B [K, N]), NT (B [N, K]) and TN (A [K, M]), plain or batched (grid z). A workgroup owns BM × BN of C and walks K sixteen
// at a time. Each thread fetches one block of four 4-vectors (the first BM threads of A, the rest of B) into registers,
// publishes it to workgroup memory with k outermost (transposed on the way where the array runs along k), and while the
// next block is on its way multiplies: thread (x, y) owns RB × CB blocks of 4 × 4, so 4·RB·CB multiply-adds of 4-vectors for
// RB + CB loads. Blocks of one thread lie BM / RB rows and BN / CB columns apart: neighbours read neighbouring 4-vectors.
// Loads are 4-vectors: K is a multiple of 4 (NN, NT), N (NN, TN), M (TN); matmul_register.wgsl takes the rest. What lies
// beyond an edge along k is 0, what lies beyond the others is not stored. The structure is the one of Volkov and Demmel
// (2008) and all since.

// --- tile
const RB = 2u;   // blocks of 4 rows a thread
const CB = 1u;   // blocks of 4 columns a thread
const TX = 16u;  // threads along the columns
const TY = 8u;   // threads along the rows; TX·TY = BM + BN, so that each thread fetches one block
// --- end
const BM = TY * RB * 4u;
const BN = TX * CB * 4u;
const BK = 16u;
const AP = BM / 4u + 1u;  // 4-vectors from one k to the next: odd, against bank conflicts of the transposed stores
const BP = BN / 4u + 1u;

struct P { m: u32, n: u32, k: u32, aRow: u32, aK: u32, bK: u32, bCol: u32, aBatch: u32, bBatch: u32, cBatch: u32 }
var<immediate> p: P;

override A_ALONG_K = true;    // NN, NT
override B_ALONG_K = false;   // NT
override BIAS = false;
override ACT = 0u;            // 0 none, 1 gelu, 2 gelu_tanh, 3 relu, 4 silu, 5 tanh
override RESIDUAL = false;
override ACCUMULATE = false;  // add to what C holds

const LIMIT = 0xffffffffu;     // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> a4: array<vec4f>;      // [G, M, K / 4], TN: [G, K, M / 4]
@group(0) @binding(1) var<storage, read> b4: array<vec4f>;      // [G, K, N / 4], NT: [G, N, K / 4]
@group(0) @binding(2) var<storage, read_write> c: array<f32>;   // [G, M, N]
@group(0) @binding(3) var<storage, read> bias: array<f32>;      // [N]
@group(0) @binding(4) var<storage, read> residual: array<f32>;  // [M, N]
@group(0) @binding(5) var<storage, read_write> u: array<f32>;   // [M, N], before the activation
// The same where N is a multiple of 4: a thread's four numbers are one store.
@group(0) @binding(2) var<storage, read_write> c4: array<vec4f>;      // [G, M, N / 4]
@group(0) @binding(3) var<storage, read> bias4: array<vec4f>;         // [N / 4]
@group(0) @binding(4) var<storage, read> residual4: array<vec4f>;     // [M, N / 4]
@group(0) @binding(5) var<storage, read_write> u4: array<vec4f>;      // [M, N / 4]

var<workgroup> sa: array<vec4f, BK * AP>;  // [k][row / 4]
var<workgroup> sb: array<vec4f, BK * BP>;  // [k][column / 4]

// --- activations
// GELU's Φ from its tail, for m = |x|: Φ(−m) = exp(−m²/2)·R(m), and above 0 Φ(m) = 1 − Φ(−m). R, Mills' ratio over √(2π), is a
// quotient of polynomials fitted to float64 with the weight m·exp(−m²/2), error 4.4e-10. Its coefficients are all
// positive, so nothing cancels: in f32 Φ is within 1.5e-7, and down to x = −8 it keeps four digits, where 1 + erf has none.
fn mills(m: vec4f) -> vec4f {
  let above = 0.5 + m * (0.300913028 + m * (0.0878841416 + m * 0.0102115117));
  return above / (1.0 + m * (1.39971053 + m * (0.792577137 + m * (0.218905546 + m * 0.0256695144))));
}
/// exp(−x²/2): 0 from |x| = 15 on.
fn bell(x: vec4f) -> vec4f { return exp2(-0.721347520 * x * x); }
/// |x| as far as `mills` takes it; the bell is 0 beyond.
fn reach(x: vec4f) -> vec4f { return min(abs(x), vec4f(100.0)); }
// tanh: the built-in may be off by 1e-5 and may overflow. Below 0.625 an odd polynomial (3.7e-9), above it from exp(−2|x|).
fn tanh_(x: vec4f) -> vec4f {
  let s = x * x;
  let small = x * (1.0 + s * (-0.333332634 + s * (0.133311861 + s * (-0.0537252520 + s * (0.0206032 - s * 0.00567247149)))));
  let e = exp(-2.0 * min(abs(x), vec4f(10.0)));
  return select(small, sign(x) * (1.0 - e) / (1.0 + e), abs(x) > vec4f(0.625));
}
// x·Φ(x), Φ the normal distribution function (Hendrycks and Gimpel 2016).
fn gelu(x: vec4f) -> vec4f {
  let tail = bell(x) * mills(reach(x));
  return x * select(tail, 1.0 - tail, x > vec4f(0.0));
}
// Its approximation of the same paper: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
fn gelu_tanh(x: vec4f) -> vec4f { return 0.5 * x * (1.0 + tanh_(0.797884561 * (x + 0.044715 * x * x * x))); }
// max would be free to turn NaN into 0.
fn relu(x: vec4f) -> vec4f { return select(x, vec4f(0.0), x < vec4f(0.0)); }
fn silu(x: vec4f) -> vec4f { return x / (1.0 + exp(-x)); }
// --- end activations

fn activate(x: vec4f) -> vec4f {
  switch ACT {
    case 1u: { return gelu(x); }
    case 2u: { return gelu_tanh(x); }
    case 3u: { return relu(x); }
    case 4u: { return silu(x); }
    case 5u: { return tanh_(x); }
    default: { return x; }
  }
}

// C at `at` = (row, column) and the three columns after it = activation(x) + residual.
fn store4(batch: u32, at: vec2u, x: vec4f) {
  let to = (batch * p.cBatch + at.x * p.n + at.y) / 4u;
  var v = activate(x);
  if (RESIDUAL) { v += residual4[to]; }
  if (ACCUMULATE) { v += c4[to]; }
  c4[to] = v;
}
fn biased4(at: vec2u, x: vec4f) -> vec4f {
  if (!BIAS) { return x; }
  return x + bias4[at.y / 4u];
}

// Likewise where N is no multiple of 4, of those columns that exist.
fn store_ragged(batch: u32, at: vec2u, x: vec4f) {
  let y = activate(x);
  let to = batch * p.cBatch + at.x * p.n + at.y;
  let columns = min(p.n - at.y, 4u);
  for (var j = 0u; j < LIMIT; j++) {
    if (j >= columns) { break; }
    var v = y[j];
    if (RESIDUAL) { v += residual[to + j]; }
    if (ACCUMULATE) { v += c[to + j]; }
    c[to + j] = v;
  }
}
fn keep_ragged(at: vec2u, x: vec4f) {
  let columns = min(p.n - at.y, 4u);
  for (var j = 0u; j < LIMIT; j++) { if (j >= columns) { break; } u[at.x * p.n + at.y + j] = x[j]; }
}
fn biased_ragged(at: vec2u, x: vec4f) -> vec4f {
  if (!BIAS) { return x; }
  let col = min(vec4u(at.y) + vec4u(0u, 1u, 2u, 3u), vec4u(p.n - 1u));
  return x + vec4f(bias[col.x], bias[col.y], bias[col.z], bias[col.w]);
}

// Four 4-vectors: of four rows (or columns) along k, or of four k along the rows (or columns).
struct Block { f0: vec4f, f1: vec4f, f2: vec4f, f3: vec4f }

fn transposed(f: Block) -> Block {
  return Block(vec4f(f.f0.x, f.f1.x, f.f2.x, f.f3.x), vec4f(f.f0.y, f.f1.y, f.f2.y, f.f3.y),
               vec4f(f.f0.z, f.f1.z, f.f2.z, f.f3.z), vec4f(f.f0.w, f.f1.w, f.f2.w, f.f3.w));
}

// What block t of a tile of `vectors` 4-vectors holds: its first k, and which 4-vector of the rows (or columns).
fn slot(t: u32, vectors: u32, along_k: bool) -> vec2u {
  return select(vec2u(t / vectors * 4u, t % vectors), vec2u((t & 3u) * 4u, t >> 2u), along_k);
}

// Where that stands in the array as stored: the first of its four rows, all rows, the 4-vector within a row, all of a row.
fn stored(at: vec2u, step: u32, tile: u32, vectors: u32, extent: u32, along_k: bool) -> vec4u {
  if (along_k) { return vec4u((tile * vectors + at.y) * 4u, extent, step * 4u + at.x / 4u, p.k / 4u); }
  return vec4u(step * BK + at.x, p.k, tile * vectors + at.y, extent / 4u);
}

// Row i of such a block: zeros beyond the edge along k. Across it, what stands at the edge again, for products that are not
// stored. The load itself is unconditional: four of them are then on their way at once, with no branch between.
fn beyond(s: vec4u, i: u32, along_k: bool) -> bool { return select(s.x + i >= s.y, s.z >= s.w, along_k); }
fn clamped(s: vec4u, i: u32) -> u32 { return min(s.x + i, s.y - 1u) * s.w + min(s.z, s.w - 1u); }
fn a_at(batch: u32, s: vec4u, i: u32) -> vec4f {
  return select(a4[batch + clamped(s, i)], vec4f(0.0), beyond(s, i, A_ALONG_K));
}
fn b_at(batch: u32, s: vec4u, i: u32) -> vec4f {
  return select(b4[batch + clamped(s, i)], vec4f(0.0), beyond(s, i, B_ALONG_K));
}

// Block t of A's tile at k = 16·step, with k outermost.
fn fetch_a(w: vec3u, t: u32, step: u32) -> Block {
  let batch = w.z * (p.aBatch / 4u);
  let s = stored(slot(t, BM / 4u, A_ALONG_K), step, w.y, BM / 4u, p.m, A_ALONG_K);
  let f = Block(a_at(batch, s, 0u), a_at(batch, s, 1u), a_at(batch, s, 2u), a_at(batch, s, 3u));
  if (A_ALONG_K) { return transposed(f); }
  return f;
}

fn fetch_b(w: vec3u, t: u32, step: u32) -> Block {
  let batch = w.z * (p.bBatch / 4u);
  let s = stored(slot(t, BN / 4u, B_ALONG_K), step, w.x, BN / 4u, p.n, B_ALONG_K);
  let f = Block(b_at(batch, s, 0u), b_at(batch, s, 1u), b_at(batch, s, 2u), b_at(batch, s, 3u));
  if (B_ALONG_K) { return transposed(f); }
  return f;
}

fn fetch(w: vec3u, t: u32, step: u32) -> Block {
  if (t < BM) { return fetch_a(w, t, step); }
  return fetch_b(w, t - BM, step);
}

fn publish(t: u32, f: Block) {
  if (t < BM) {
    let at = slot(t, BM / 4u, A_ALONG_K);
    let to = at.x * AP + at.y;
    sa[to] = f.f0;
    sa[to + AP] = f.f1;
    sa[to + 2u * AP] = f.f2;
    sa[to + 3u * AP] = f.f3;
    return;
  }
  let at = slot(t - BM, BN / 4u, B_ALONG_K);
  let to = at.x * BP + at.y;
  sb[to] = f.f0;
  sb[to + BP] = f.f1;
  sb[to + 2u * BP] = f.f2;
  sb[to + 3u * BP] = f.f3;
}

// The sums of one thread, named: an array with a computed index would live in memory. Rows of block (0, 0), (0, 1), …
struct Sums {
  c0: vec4f, c1: vec4f, c2: vec4f, c3: vec4f, c4: vec4f, c5: vec4f, c6: vec4f, c7: vec4f,
  c8: vec4f, c9: vec4f, c10: vec4f, c11: vec4f, c12: vec4f, c13: vec4f, c14: vec4f, c15: vec4f,
}

fn tile_product(w: vec3u, t: u32) -> Sums {
  var s = Sums();
  let x = t % TX;
  let y = (t / TX) % TY;  // % proves an index within bounds, which is then not clamped
  let steps = (p.k + BK - 1u) / BK;
  var next = fetch(w, t, 0u);
  for (var step = 0u; step < LIMIT; step++) {
    if (step >= steps) { break; }
    workgroupBarrier();  // all have read the last tile
    publish(t, next);
    workgroupBarrier();
    if (step + 1u < steps) { next = fetch(w, t, step + 1u); }
    for (var k = 0u; k < BK; k++) {
      let a0 = sa[k * AP + y];
      let b0 = sb[k * BP + x];
      s.c0 += a0.x * b0; s.c1 += a0.y * b0; s.c2 += a0.z * b0; s.c3 += a0.w * b0;
      if (CB == 2u) {
        let b1 = sb[k * BP + TX + x];
        s.c4 += a0.x * b1; s.c5 += a0.y * b1; s.c6 += a0.z * b1; s.c7 += a0.w * b1;
        if (RB == 2u) {
          let a1 = sa[k * AP + TY + y];
          s.c12 += a1.x * b1; s.c13 += a1.y * b1; s.c14 += a1.z * b1; s.c15 += a1.w * b1;
        }
      }
      if (RB == 2u) {
        let a1 = sa[k * AP + TY + y];
        s.c8 += a1.x * b0; s.c9 += a1.y * b0; s.c10 += a1.z * b0; s.c11 += a1.w * b0;
      }
    }
  }
  return s;
}

// Row i of the thread's blocks. A switch, and a loop that the compiler cannot unroll: sixteen copies of the epilogue take
// minutes to compile on a CPU adapter, and an array would move the sums to memory.
fn row_of(s: Sums, i: u32) -> vec4f {
  switch i {
    case 0u: { return s.c0; }
    case 1u: { return s.c1; }
    case 2u: { return s.c2; }
    case 3u: { return s.c3; }
    case 4u: { return s.c4; }
    case 5u: { return s.c5; }
    case 6u: { return s.c6; }
    case 7u: { return s.c7; }
    case 8u: { return s.c8; }
    case 9u: { return s.c9; }
    case 10u: { return s.c10; }
    case 11u: { return s.c11; }
    case 12u: { return s.c12; }
    case 13u: { return s.c13; }
    case 14u: { return s.c14; }
    default: { return s.c15; }
  }
}

// Where row i of thread t lies: block i / 8 down, block i / 4 % 2 across.
fn cell(w: vec3u, t: u32, i: u32) -> vec2u {
  let row = w.y * BM + (i >> 3u) * TY * 4u + t / TX * 4u + (i & 3u);
  let col = w.x * BN + ((i >> 2u) & 1u) * TX * 4u + t % TX * 4u;
  return vec2u(row, col);
}
fn exists(at: vec2u, i: u32) -> bool {
  let mine = (RB == 2u || i < 8u) && (CB == 2u || (i & 4u) == 0u);
  return mine && at.x < p.m && at.y < p.n;
}
// One more than the last row that a thread has, which the compiler cannot know.
fn last_row() -> u32 { return min(8u * RB - select(4u, 0u, CB == 2u), p.m * 16u); }

@compute @workgroup_size(TX * TY)
fn tiled(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let s = tile_product(w, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= last_row()) { break; }
    let at = cell(w, t, i);
    if (exists(at, i)) { store4(w.z, at, biased4(at, row_of(s, i))); }
  }
}

// As above, and A·B + bias is kept: the backward of the activation needs it.
@compute @workgroup_size(TX * TY)
fn tiled_kept(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let s = tile_product(w, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= last_row()) { break; }
    let at = cell(w, t, i);
    if (exists(at, i)) {
      let x = biased4(at, row_of(s, i));
      u4[(at.x * p.n + at.y) / 4u] = x;
      store4(w.z, at, x);
    }
  }
}

// Both where N is no multiple of 4.
@compute @workgroup_size(TX * TY)
fn ragged(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let s = tile_product(w, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= last_row()) { break; }
    let at = cell(w, t, i);
    if (exists(at, i)) { store_ragged(w.z, at, biased_ragged(at, row_of(s, i))); }
  }
}

@compute @workgroup_size(TX * TY)
fn ragged_kept(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let s = tile_product(w, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= last_row()) { break; }
    let at = cell(w, t, i);
    if (exists(at, i)) {
      let x = biased_ragged(at, row_of(s, i));
      keep_ragged(at, x);
      store_ragged(w.z, at, x);
    }
  }
}
