// Matrix product by subgroup broadcast: C (+)= act(A·B + bias) + residual for the layouts NN (A [M, K], B [K, N]),
// NT (B [N, K]) and TN (A [K, M]), plain or batched (grid z). What the backward needs stands in matmul_register.wgsl.
// One subgroup of LANES threads is a workgroup and owns 16 rows × 4·LANES columns of C.
// Each lane loads 16 / LANES elements of A for one k, and the others get them by subgroupBroadcast; B is read by the
// lane that owns the columns; sums stay in registers. No workgroup memory and no barrier: software adapters spill all
// registers at one. There a load whose address differs between lanes is a scalar load for each, so loads are what
// counts: 4 + 16 / LANES of them for 64 multiplications. A round takes two k: a longer one is slower (code size).
// A row or column beyond the edge repeats the last one and is not stored, so nothing outside the arrays is read.
// NN and TN: N is a multiple of 4, M and K are any; NT: K is even, M and N are any. matmul_register.wgsl takes the rest.
enable subgroups;

// --- tile
const LANES = 8u;   // subgroup size: 4 or 8
// --- end
const ROWS = 16u;   // rows a subgroup

struct P { m: u32, n: u32, k: u32, aRow: u32, aK: u32, bK: u32, bCol: u32, aBatch: u32, bBatch: u32, cBatch: u32 }
var<immediate> p: P;

override BIAS = false;
override ACT = 0u;            // 0 none, 1 gelu, 2 gelu_tanh, 3 relu, 4 silu, 5 tanh
override RESIDUAL = false;
override ACCUMULATE = false;  // add to what C holds

const LIMIT = 0xffffffffu;    // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> a: array<f32>;         // NN: [G, M, K], TN: [G, K, M]
@group(0) @binding(1) var<storage, read> b4: array<vec4f>;      // [G, K, N / 4]
@group(0) @binding(0) var<storage, read> a2: array<vec2f>;      // NT: [G, M, K / 2]
@group(0) @binding(1) var<storage, read> b2: array<vec2f>;      // NT: [G, N, K / 2]
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

// The sums of one lane, a 4-vector of columns for each row: named, since SwiftShader keeps every array in memory.
struct Sums {
  c0: vec4f, c1: vec4f, c2: vec4f, c3: vec4f, c4: vec4f, c5: vec4f, c6: vec4f, c7: vec4f,
  c8: vec4f, c9: vec4f, c10: vec4f, c11: vec4f, c12: vec4f, c13: vec4f, c14: vec4f, c15: vec4f,
}

// s += column of A × row of B. The lane's number must be a constant expression.
fn outer(s: ptr<function, Sums>, x: vec4f, y: vec4f) {
  (*s).c0 += subgroupBroadcast(x.x, 0u % LANES) * y;
  (*s).c1 += subgroupBroadcast(x.x, 1u % LANES) * y;
  (*s).c2 += subgroupBroadcast(x.x, 2u % LANES) * y;
  (*s).c3 += subgroupBroadcast(x.x, 3u % LANES) * y;
  (*s).c4 += subgroupBroadcast(x.y, 4u % LANES) * y;
  (*s).c5 += subgroupBroadcast(x.y, 5u % LANES) * y;
  (*s).c6 += subgroupBroadcast(x.y, 6u % LANES) * y;
  (*s).c7 += subgroupBroadcast(x.y, 7u % LANES) * y;
  (*s).c8 += subgroupBroadcast(x.z, 8u % LANES) * y;
  (*s).c9 += subgroupBroadcast(x.z, 9u % LANES) * y;
  (*s).c10 += subgroupBroadcast(x.z, 10u % LANES) * y;
  (*s).c11 += subgroupBroadcast(x.z, 11u % LANES) * y;
  (*s).c12 += subgroupBroadcast(x.w, 12u % LANES) * y;
  (*s).c13 += subgroupBroadcast(x.w, 13u % LANES) * y;
  (*s).c14 += subgroupBroadcast(x.w, 14u % LANES) * y;
  (*s).c15 += subgroupBroadcast(x.w, 15u % LANES) * y;
}

// The rows of A that a lane loads for its subgroup, as numbers of rows; the last row stands in for those beyond it.
fn own_rows(w: vec3u, t: u32) -> vec4u {
  return min(vec4u(w.y * ROWS + t) + vec4u(0u, LANES, 2u * LANES, 3u * LANES), vec4u(p.m - 1u));
}

// A's elements of one k: that of row i comes as part i / 4 in lane i % LANES.
fn column(at: vec4u) -> vec4f {
  let x = a[at.x];
  let y = a[at.y];
  if (LANES == 8u) { return vec4f(x, x, y, y); }
  return vec4f(x, y, a[at.z], a[at.w]);
}

// NN and TN: the two differ in A's strides.
fn product(w: vec3u, t: u32) -> Sums {
  var s = Sums();
  var aAt = w.z * p.aBatch + own_rows(w, t) * p.aRow;
  let n4 = p.n / 4u;
  var bAt = w.z * (p.bBatch / 4u) + min(w.x * LANES + t, n4 - 1u);
  let half = p.k / 2u;
  for (var k = 0u; k < LIMIT; k++) {
    if (k >= half) { break; }
    let x = column(aAt);
    let y = b4[bAt];
    let next = column(aAt + p.aK);
    let below = b4[bAt + n4];
    outer(&s, x, y);
    outer(&s, next, below);
    aAt += 2u * p.aK;
    bAt += 2u * n4;
  }
  if (p.k % 2u == 1u) { outer(&s, column(aAt), b4[bAt]); }
  return s;
}

// NT: both operands run along k, two at a time; the columns of a 4-vector are four rows of B.
fn product_nt(w: vec3u, t: u32) -> Sums {
  var s = Sums();
  let k2 = p.k / 2u;
  let aAt = w.z * (p.aBatch / 2u) + own_rows(w, t) * k2;
  let col = (w.x * LANES + t) * 4u;
  let bAt = w.z * (p.bBatch / 2u) + min(vec4u(col, col + 1u, col + 2u, col + 3u), vec4u(p.n - 1u)) * k2;
  for (var k = 0u; k < LIMIT; k++) {
    if (k >= k2) { break; }
    let v0 = b2[bAt.x + k];
    let v1 = b2[bAt.y + k];
    let v2 = b2[bAt.z + k];
    let v3 = b2[bAt.w + k];
    let x0 = a2[aAt.x + k];
    let x1 = a2[aAt.y + k];
    var x = vec4f(x0.x, x0.x, x1.x, x1.x);
    var next = vec4f(x0.y, x0.y, x1.y, x1.y);
    if (LANES == 4u) {
      let x2 = a2[aAt.z + k];
      let x3 = a2[aAt.w + k];
      x = vec4f(x0.x, x1.x, x2.x, x3.x);
      next = vec4f(x0.y, x1.y, x2.y, x3.y);
    }
    outer(&s, x, vec4f(v0.x, v1.x, v2.x, v3.x));
    outer(&s, next, vec4f(v0.y, v1.y, v2.y, v3.y));
  }
  return s;
}

fn subgroup_rows(s: Sums) -> array<vec4f, ROWS> {
  return array(s.c0, s.c1, s.c2, s.c3, s.c4, s.c5, s.c6, s.c7, s.c8, s.c9, s.c10, s.c11, s.c12, s.c13, s.c14, s.c15);
}

// The loops over rows and columns of an epilogue have no small constant bound: unrolled, they take many seconds to compile.
fn finish(w: vec3u, t: u32, s: Sums) {
  var sums = subgroup_rows(s);
  let rows = min(p.m - w.y * ROWS, ROWS);
  let col = (w.x * LANES + t) * 4u;
  if (col >= p.n) { return; }
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= rows) { break; }
    store(w.z, w.y * ROWS + i, col, biased(col, sums[i]));
  }
}

fn finish_kept(w: vec3u, t: u32, s: Sums) {
  var sums = subgroup_rows(s);
  let rows = min(p.m - w.y * ROWS, ROWS);
  let col = (w.x * LANES + t) * 4u;
  if (col >= p.n) { return; }
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= rows) { break; }
    let x = biased(col, sums[i]);
    keep(w.y * ROWS + i, col, x);
    store(w.z, w.y * ROWS + i, col, x);
  }
}

@compute @workgroup_size(LANES)
fn nn(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) { finish(w, t, product(w, t)); }

@compute @workgroup_size(LANES)
fn nt(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) { finish(w, t, product_nt(w, t)); }

// As above, and A·B + bias is kept: the backward of the activation needs it.
@compute @workgroup_size(LANES)
fn nn_kept(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) { finish_kept(w, t, product(w, t)); }

@compute @workgroup_size(LANES)
fn nt_kept(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) { finish_kept(w, t, product_nt(w, t)); }
