// Matrix product with results in registers and nothing shared between threads: C (+)= act(A·B + bias) + residual for the
// layouts NN (A [M, K], B [K, N]), NT (B [N, K]) and TN (A [K, M]), plain or batched (grid z). Works on every adapter and
// for every size: the layout is two pairs of strides. Thread (x, y) of a workgroup of 8 × 8 owns 8 rows, 4 columns of C.
// A row or column beyond the edge repeats the last one and is not stored, so nothing outside the arrays is read.
// The backward is two more products, dA = dU·Bᵀ and dB = Aᵀ·dU with dU = act'(u) ⊙ dC, and needs A, B and u = A·B + bias,
// which the entry points `…_kept` leave.

const ROWS = 8u;   // rows a thread

struct P { m: u32, n: u32, k: u32, aRow: u32, aK: u32, bK: u32, bCol: u32, aBatch: u32, bBatch: u32, cBatch: u32 }
var<immediate> p: P;

override BIAS = false;
override ACT = 0u;            // 0 none, 1 gelu, 2 gelu_tanh, 3 relu, 4 silu, 5 tanh
override RESIDUAL = false;
override ACCUMULATE = false;  // add to what C holds

const LIMIT = 0xffffffffu;    // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> a: array<f32>;         // [G, M, K], TN: [G, K, M]
@group(0) @binding(1) var<storage, read> b: array<f32>;         // [G, K, N], NT: [G, N, K]
@group(0) @binding(2) var<storage, read_write> c: array<f32>;   // [G, M, N]
@group(0) @binding(3) var<storage, read> bias: array<f32>;      // [N]
@group(0) @binding(4) var<storage, read> residual: array<f32>;  // [M, N]
@group(0) @binding(5) var<storage, read_write> u: array<f32>;   // [M, N], before the activation

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

fn biased(col: u32, x: vec4f) -> vec4f {
  if (!BIAS) { return x; }
  let last = p.n - 1u;
  return x + vec4f(bias[col], bias[min(col + 1u, last)], bias[min(col + 2u, last)], bias[min(col + 3u, last)]);
}

// C at (row, col … col + 3) = activation(x) + residual, of those columns that exist.
fn store(batch: u32, row: u32, col: u32, x: vec4f) {
  let y = activate(x);
  let at = batch * p.cBatch + row * p.n + col;
  let columns = min(p.n - col, 4u);
  for (var j = 0u; j < LIMIT; j++) {
    if (j >= columns) { break; }
    var v = y[j];
    if (RESIDUAL) { v += residual[at + j]; }
    if (ACCUMULATE) { v += c[at + j]; }
    c[at + j] = v;
  }
}

fn keep(row: u32, col: u32, x: vec4f) {
  let columns = min(p.n - col, 4u);
  for (var j = 0u; j < LIMIT; j++) { if (j >= columns) { break; } u[row * p.n + col + j] = x[j]; }
}

// The sums of one thread, a 4-vector of columns for each row: named, since SwiftShader keeps every array in memory.
struct Sums { c0: vec4f, c1: vec4f, c2: vec4f, c3: vec4f, c4: vec4f, c5: vec4f, c6: vec4f, c7: vec4f }

fn product_strided(batch: u32, row: u32, col: u32) -> Sums {
  var s = Sums();
  let first = vec4u(row, row + 1u, row + 2u, row + 3u);
  var top = batch * p.aBatch + min(first, vec4u(p.m - 1u)) * p.aRow;
  var bottom = batch * p.aBatch + min(first + 4u, vec4u(p.m - 1u)) * p.aRow;
  var bAt = batch * p.bBatch + min(vec4u(col, col + 1u, col + 2u, col + 3u), vec4u(p.n - 1u)) * p.bCol;
  for (var k = 0u; k < LIMIT; k++) {
    if (k >= p.k) { break; }
    let y = vec4f(b[bAt.x], b[bAt.y], b[bAt.z], b[bAt.w]);
    s.c0 += a[top.x] * y;
    s.c1 += a[top.y] * y;
    s.c2 += a[top.z] * y;
    s.c3 += a[top.w] * y;
    s.c4 += a[bottom.x] * y;
    s.c5 += a[bottom.y] * y;
    s.c6 += a[bottom.z] * y;
    s.c7 += a[bottom.w] * y;
    top += p.aK;
    bottom += p.aK;
    bAt += p.bK;
  }
  return s;
}

// Row i of the thread's sums. A switch: an array with a computed index would live in memory, and eight copies of the
// epilogue compile for many seconds on a CPU adapter.
fn sum_of(s: Sums, i: u32) -> vec4f {
  switch i {
    case 0u: { return s.c0; }
    case 1u: { return s.c1; }
    case 2u: { return s.c2; }
    case 3u: { return s.c3; }
    case 4u: { return s.c4; }
    case 5u: { return s.c5; }
    case 6u: { return s.c6; }
    default: { return s.c7; }
  }
}

@compute @workgroup_size(8, 8)
fn registers(@builtin(global_invocation_id) id: vec3u) {
  let row = id.y * ROWS;
  let col = id.x * 4u;
  if (row >= p.m || col >= p.n) { return; }
  let sums = product_strided(id.z, row, col);
  let rows = min(p.m - row, ROWS);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= rows) { break; }
    store(id.z, row + i, col, biased(col, sum_of(sums, i)));
  }
}

// The same, and u = A·B + bias is kept.
@compute @workgroup_size(8, 8)
fn registers_kept(@builtin(global_invocation_id) id: vec3u) {
  let row = id.y * ROWS;
  let col = id.x * 4u;
  if (row >= p.m || col >= p.n) { return; }
  let sums = product_strided(id.z, row, col);
  let rows = min(p.m - row, ROWS);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= rows) { break; }
    let x = biased(col, sum_of(sums, i));
    keep(row + i, col, x);
    store(id.z, row + i, col, x);
  }
}
