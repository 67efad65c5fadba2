// Matrix product on matrix units ("tensor cores"): C (+)= act(A·B + bias) + residual for the layouts NN (A [M, K], B [K, N]),
// NT (B [N, K]) and TN (A [K, M]), plain or batched (grid z). A, B and C are f32 in storage; on its way into workgroup memory
// a tile of A and of B is rounded to f16, products are exact in f32 and sums are f32. So an entry beyond 65,504 becomes an
// infinity and one below 6e-5 loses bits: what is trained with it scales its loss (train/lossscale.ts).
// A workgroup of WM × WN subgroups owns BM × BN of C and walks K thirty-two at a time: each thread fetches its 4-vectors of
// the next tiles into registers, all multiply the tiles that stand in workgroup memory, and then the next are published.
// Tiles stand as in storage, and whatever runs along k or across it is loaded by rows or by columns: no transposing pass.
// A subgroup owns SM × SN of C as RM × RN fragments of the unit's own size. Fragments have no elements that a thread may
// touch, so the epilogue goes through workgroup memory, a row of fragments at a time.
// Loads are 4-vectors: K is a multiple of 4 (NN, NT), N (NN, TN), M (TN).
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;

// --- tile
const SG = 8u;   // threads of a subgroup
const FM = 8u;   // rows, columns and k of the unit's fragments
const FN = 8u;
const FK = 8u;
const WM = 2u;   // subgroups along the rows
const WN = 2u;   // subgroups along the columns
const SM = 32u;  // rows of a subgroup, at most four fragments
const SN = 32u;  // columns of a subgroup
// --- end
const T = SG * WM * WN;
const BM = WM * SM;
const BN = WN * SN;
const BK = 32u;
const RM = SM / FM;
const RN = SN / FN;
// 4-vectors from one line of a tile to the next: eight halfs of padding, which keep lines on 16 bytes and banks apart.
const LK = BK / 4u + 2u;
const LM = BM / 4u + 2u;
const LN = BN / 4u + 2u;
const LC = BN / 4u + 1u;
const FA = BM * BK / 4u / T;  // 4-vectors that a thread fetches of each tile
const FB = BN * BK / 4u / T;

alias Left = subgroup_matrix_left<f16, FK, FM>;
alias Right = subgroup_matrix_right<f16, FN, FK>;
alias Sums = subgroup_matrix_result<f32, FN, FM>;

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

var<workgroup> sa: array<vec4h, max(BM * LK, BK * LM)>;  // [row][k / 4], TN: [k][row / 4]
var<workgroup> sb: array<vec4h, max(BK * LN, BN * LK)>;  // [k][column / 4], NT: [column][k / 4]
var<workgroup> sc: array<vec4f, WM * FM * LC>;           // [WM rows of fragments][column / 4]

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

// Where 4-vector e of a tile stands: its line (a row or column where the array runs along k, else a k) and its place there.
fn vector_of(e: u32, across: u32, along_k: bool) -> vec2u {
  let vectors = select(across / 4u, BK / 4u, along_k);
  return vec2u(e / vectors, e % vectors);
}

// 4-vector e of A's tile at k = BK·step: 0 beyond the edge along k; across it what stands at the edge again, for products that
// are not stored. The loads themselves are unconditional, so that all of them are on their way at once.
fn a_vector(w: vec3u, e: u32, step: u32) -> vec4f {
  let at = vector_of(e, BM, A_ALONG_K);
  let first = vec2u(select(step * BK, w.y * BM, A_ALONG_K), select(w.y * BM, step * BK, A_ALONG_K) / 4u);
  let extent = vec2u(select(p.k, p.m, A_ALONG_K), select(p.m, p.k, A_ALONG_K) / 4u);
  let line = first + at;
  let there = min(line, extent - 1u);
  let v = a4[w.z * (p.aBatch / 4u) + there.x * extent.y + there.y];
  return select(v, vec4f(0.0), select(line.x >= extent.x, line.y >= extent.y, A_ALONG_K));
}

fn b_vector(w: vec3u, e: u32, step: u32) -> vec4f {
  let at = vector_of(e, BN, B_ALONG_K);
  let first = vec2u(select(step * BK, w.x * BN, B_ALONG_K), select(w.x * BN, step * BK, B_ALONG_K) / 4u);
  let extent = vec2u(select(p.k, p.n, B_ALONG_K), select(p.n, p.k, B_ALONG_K) / 4u);
  let line = first + at;
  let there = min(line, extent - 1u);
  let v = b4[w.z * (p.bBatch / 4u) + there.x * extent.y + there.y];
  return select(v, vec4f(0.0), select(line.x >= extent.x, line.y >= extent.y, B_ALONG_K));
}

// The sums of subgroup g.
fn products(w: vec3u, t: u32, g: u32, sums: ptr<function, array<array<Sums, RN>, RM>>) {
  let row = g / WN * SM;
  let col = g % WN * SN;
  let steps = (p.k + BK - 1u) / BK;
  var fa: array<vec4f, FA>;
  var fb: array<vec4f, FB>;
  for (var i = 0u; i < FA; i++) { fa[i] = a_vector(w, i * T + t, 0u); }
  for (var i = 0u; i < FB; i++) { fb[i] = b_vector(w, i * T + t, 0u); }
  for (var step = 0u; step < LIMIT; step++) {
    if (step >= steps) { break; }
    workgroupBarrier();  // all have read the last tiles
    for (var i = 0u; i < FA; i++) {
      let at = vector_of(i * T + t, BM, A_ALONG_K);
      sa[at.x * select(LM, LK, A_ALONG_K) + at.y] = vec4h(fa[i]);
    }
    for (var i = 0u; i < FB; i++) {
      let at = vector_of(i * T + t, BN, B_ALONG_K);
      sb[at.x * select(LN, LK, B_ALONG_K) + at.y] = vec4h(fb[i]);
    }
    workgroupBarrier();
    if (step + 1u < steps) {
      for (var i = 0u; i < FA; i++) { fa[i] = a_vector(w, i * T + t, step + 1u); }
      for (var i = 0u; i < FB; i++) { fb[i] = b_vector(w, i * T + t, step + 1u); }
    }
    for (var k = 0u; k < BK / FK; k++) {
      var left: array<Left, RM>;
      for (var i = 0u; i < RM; i++) {
        if (A_ALONG_K) { left[i] = subgroupMatrixLoad<Left, row_major>(&sa, (row + i * FM) * LK + k * (FK / 4u), LK); }
        else { left[i] = subgroupMatrixLoad<Left, col_major>(&sa, k * FK * LM + (row + i * FM) / 4u, LM); }
      }
      for (var j = 0u; j < RN; j++) {
        var right: Right;
        if (B_ALONG_K) { right = subgroupMatrixLoad<Right, col_major>(&sb, (col + j * FN) * LK + k * (FK / 4u), LK); }
        else { right = subgroupMatrixLoad<Right, row_major>(&sb, k * FK * LN + (col + j * FN) / 4u, LN); }
        for (var i = 0u; i < RM; i++) { (*sums)[i][j] = subgroupMatrixMultiplyAccumulate(left[i], right, (*sums)[i][j]); }
      }
    }
  }
}

// Row i of every subgroup's fragments to workgroup memory. `i` is a constant where this is called: sums that were found by a
// computed index would live in memory.
fn lay_out(g: u32, i: u32, sums: ptr<function, array<array<Sums, RN>, RM>>) {
  workgroupBarrier();  // all have read what lay there
  for (var j = 0u; j < RN; j++) {
    subgroupMatrixStore<row_major>(&sc, g / WN * FM * LC + (g % WN * SN + j * FN) / 4u, (*sums)[i][j], LC);
  }
  workgroupBarrier();
}

// 4-vector e of what lies there: its row and column in C.
fn cell_of(w: vec3u, i: u32, e: u32) -> vec2u {
  let line = e / (BN / 4u);
  return vec2u(w.y * BM + line / FM * SM + i * FM + line % FM, w.x * BN + e % (BN / 4u) * 4u);
}

fn in_c(at: vec2u) -> bool { return at.x < p.m && at.y < p.n; }
fn laid_out(e: u32) -> vec4f { return sc[e / (BN / 4u) * LC + e % (BN / 4u)]; }
// WM·FM·BN / 4, which the compiler cannot know: it would write the epilogue out as often.
fn vectors() -> u32 { return min(WM * FM * (BN / 4u), p.m + 65535u); }

fn finish_rows(w: vec3u, t: u32, i: u32) {
  for (var n = 0u; n < LIMIT; n++) {
    let e = n * T + t;
    if (e >= vectors()) { break; }
    let at = cell_of(w, i, e);
    if (in_c(at)) { store4(w.z, at, biased4(at, laid_out(e))); }
  }
}
fn finish_rows_kept(w: vec3u, t: u32, i: u32) {
  for (var n = 0u; n < LIMIT; n++) {
    let e = n * T + t;
    if (e >= vectors()) { break; }
    let at = cell_of(w, i, e);
    if (in_c(at)) {
      let x = biased4(at, laid_out(e));
      u4[(at.x * p.n + at.y) / 4u] = x;
      store4(w.z, at, x);
    }
  }
}
fn finish_ragged(w: vec3u, t: u32, i: u32) {
  for (var n = 0u; n < LIMIT; n++) {
    let e = n * T + t;
    if (e >= vectors()) { break; }
    let at = cell_of(w, i, e);
    if (in_c(at)) { store_ragged(w.z, at, biased_ragged(at, laid_out(e))); }
  }
}
fn finish_ragged_kept(w: vec3u, t: u32, i: u32) {
  for (var n = 0u; n < LIMIT; n++) {
    let e = n * T + t;
    if (e >= vectors()) { break; }
    let at = cell_of(w, i, e);
    if (in_c(at)) {
      let x = biased_ragged(at, laid_out(e));
      keep_ragged(at, x);
      store_ragged(w.z, at, x);
    }
  }
}

@compute @workgroup_size(T)
fn matrices(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) g: u32) {
  var sums: array<array<Sums, RN>, RM>;
  products(w, t, g, &sums);
  lay_out(g, 0u, &sums);
  finish_rows(w, t, 0u);
  if (RM > 1u) { lay_out(g, min(1u, RM - 1u), &sums); finish_rows(w, t, 1u); }
  if (RM > 2u) { lay_out(g, min(2u, RM - 1u), &sums); finish_rows(w, t, 2u); }
  if (RM > 3u) { lay_out(g, min(3u, RM - 1u), &sums); finish_rows(w, t, 3u); }
}

// As above, and A·B + bias is kept: the backward of the activation needs it.
@compute @workgroup_size(T)
fn matrices_kept(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) g: u32) {
  var sums: array<array<Sums, RN>, RM>;
  products(w, t, g, &sums);
  lay_out(g, 0u, &sums);
  finish_rows_kept(w, t, 0u);
  if (RM > 1u) { lay_out(g, min(1u, RM - 1u), &sums); finish_rows_kept(w, t, 1u); }
  if (RM > 2u) { lay_out(g, min(2u, RM - 1u), &sums); finish_rows_kept(w, t, 2u); }
  if (RM > 3u) { lay_out(g, min(3u, RM - 1u), &sums); finish_rows_kept(w, t, 3u); }
}

// Both where N is no multiple of 4.
@compute @workgroup_size(T)
fn ragged(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) g: u32) {
  var sums: array<array<Sums, RN>, RM>;
  products(w, t, g, &sums);
  lay_out(g, 0u, &sums);
  finish_ragged(w, t, 0u);
  if (RM > 1u) { lay_out(g, min(1u, RM - 1u), &sums); finish_ragged(w, t, 1u); }
  if (RM > 2u) { lay_out(g, min(2u, RM - 1u), &sums); finish_ragged(w, t, 2u); }
  if (RM > 3u) { lay_out(g, min(3u, RM - 1u), &sums); finish_ragged(w, t, 3u); }
}

@compute @workgroup_size(T)
fn ragged_kept(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) g: u32) {
  var sums: array<array<Sums, RN>, RM>;
  products(w, t, g, &sums);
  lay_out(g, 0u, &sums);
  finish_ragged_kept(w, t, 0u);
  if (RM > 1u) { lay_out(g, min(1u, RM - 1u), &sums); finish_ragged_kept(w, t, 1u); }
  if (RM > 2u) { lay_out(g, min(2u, RM - 1u), &sums); finish_ragged_kept(w, t, 2u); }
  if (RM > 3u) { lay_out(g, min(3u, RM - 1u), &sums); finish_ragged_kept(w, t, 3u); }
}
