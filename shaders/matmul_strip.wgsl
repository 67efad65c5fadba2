// Matrix product by subgroup shuffles of 4-vectors: C (+)= act(A·B + bias) + residual for the layouts NN (A [M, K],
// B [K, N]), NT (B [N, K]) and TN (A [K, M]), plain or batched (grid z). What the backward needs stands in
// matmul_register.wgsl. One subgroup of 8 threads is a workgroup and owns a strip of ROWS rows × 32 columns of C.
// It is made for drivers that run a subgroup as one vector of a CPU (Mesa's lavapipe). There a load is a loop over the lanes, a
// bounds check for each number, and a variable that a loop carries goes through a mask and the stack every round. So a round takes
// four k; the lanes together load the strip's part of A and hand it on by shuffles, each loads its own columns of B, all by
// 4-vectors: 4 + ROWS / 8 loads for 16·ROWS multiplications of a lane; and each row's sums take all four k at once. Eight
// k are slower: what a round has loaded no longer fits the registers.
// The compiler unrolls the loops over rows, which makes the arrays registers and the lane numbers constants.
// A row or column beyond the edge repeats the last one and is not stored, so nothing outside the arrays is read.
// NN: K and N are multiples of 4; NT: K; TN: M and N; the others are any. matmul_subgroup.wgsl takes the rest.
enable subgroups;

// --- tile
const ROWS = 32u;   // rows a subgroup: a multiple of 8
// --- end
const LANES = 8u;   // subgroup size

struct P { m: u32, n: u32, k: u32, aRow: u32, aK: u32, bK: u32, bCol: u32, aBatch: u32, bBatch: u32, cBatch: u32 }
var<immediate> p: P;

override A_ALONG_K = true;    // A is stored by rows of K numbers (NN, NT), or by rows of M (TN)
override B_ALONG_K = true;    // B is stored by rows of K numbers (NT), or by rows of N (NN, TN)
override B_PACKED = false;    // B is stored by panels of 32 columns, as matmul_pack.wgsl leaves it (NN, TN)
override BIAS = false;
override ACT = 0u;            // 0 none, 1 gelu, 2 gelu_tanh, 3 relu, 4 silu, 5 tanh
override RESIDUAL = false;
override ACCUMULATE = false;  // add to what C holds

const LIMIT = 0xffffffffu;    // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> a4: array<vec4f>;      // [G, M, K / 4], TN: [G, K, M / 4]
@group(0) @binding(1) var<storage, read> b4: array<vec4f>;      // [G, K, N / 4], NT: [G, N, K / 4]; packed: [G, ceil(N / 32), K, 8]
@group(0) @binding(2) var<storage, read_write> c: array<f32>;   // [G, M, N]
@group(0) @binding(3) var<storage, read> bias: array<f32>;      // [N]
@group(0) @binding(4) var<storage, read> residual: array<f32>;  // [M, N]
@group(0) @binding(5) var<storage, read_write> u: array<f32>;   // [M, N], before the activation

// --- activations
// GELU's Φ from its tail, for m = |x|: Φ(−m) = exp(−m²/2)·R(m), and above 0 Φ(m) = 1 − Φ(−m). R, Mills' ratio over √(2π), is a
// quotient of polynomials fitted to float64 with the weight m·exp(−m²/2), error 4.4e-10. Its coefficients are all
// positive, so nothing cancels: in f32 Φ is within 1.5e-7, and below 0 it keeps its leading digits where 1 + erf has none.
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

// Part g of a round's A. Along K: four k of row g·LANES + t. Along M: rows 4·(v % (ROWS / 4)) … + 3 of the round's
// k v / (ROWS / 4), where v = g·LANES + t; a k beyond the last counts as 0, and B's too.
fn a_part(w: vec3u, t: u32, round: u32, g: u32) -> vec4f {
  let batch = w.z * (p.aBatch / 4u);
  if (A_ALONG_K) { return a4[batch + min(w.y * ROWS + g * LANES + t, p.m - 1u) * (p.k / 4u) + round]; }
  let v = g * LANES + t;
  let k = round * 4u + v / (ROWS / 4u);
  let at = min(w.y * (ROWS / 4u) + v % (ROWS / 4u), p.m / 4u - 1u);
  return select(vec4f(), a4[batch + min(k, p.k - 1u) * (p.m / 4u) + at], k < p.k);
}

// The round's four k of row r, from the lanes that loaded them.
fn a_four(x: array<vec4f, ROWS / LANES>, r: u32) -> vec4f {
  if (A_ALONG_K) { return subgroupShuffle(x[r / LANES], r % LANES); }
  let v = vec4u(r / 4u) + vec4u(0u, 1u, 2u, 3u) * (ROWS / 4u);
  let j = r % 4u;
  return vec4f(subgroupShuffle(x[v.x / LANES][j], v.x % LANES), subgroupShuffle(x[v.y / LANES][j], v.y % LANES),
    subgroupShuffle(x[v.z / LANES][j], v.z % LANES), subgroupShuffle(x[v.w / LANES][j], v.w % LANES));
}

// A round's B: for each of its four k the lane's four columns.
fn b_block(w: vec3u, t: u32, round: u32) -> mat4x4f {
  let batch = w.z * (p.bBatch / 4u);
  let col4 = w.x * LANES + t;
  if (B_ALONG_K) {
    let k4 = p.k / 4u;
    let cols = min(vec4u(col4 * 4u) + vec4u(0u, 1u, 2u, 3u), vec4u(p.n - 1u)) * k4 + vec4u(batch + round);
    return transpose(mat4x4f(b4[cols.x], b4[cols.y], b4[cols.z], b4[cols.w]));
  }
  // From one k to the next.
  let step = select(p.n / 4u, LANES, B_PACKED);
  let first = select(batch + min(col4, p.n / 4u - 1u), (w.z * ((p.n + 31u) / 32u) + w.x) * p.k * LANES + t, B_PACKED);
  let at = first + round * 4u * step;
  if (A_ALONG_K) { return mat4x4f(b4[at], b4[at + step], b4[at + 2u * step], b4[at + 3u * step]); }
  let last = p.k - 1u - round * 4u;
  return mat4x4f(b4[at], select(vec4f(), b4[at + min(1u, last) * step], last >= 1u),
    select(vec4f(), b4[at + min(2u, last) * step], last >= 2u), select(vec4f(), b4[at + min(3u, last) * step], last >= 3u));
}

fn strip(w: vec3u, t: u32) -> array<vec4f, ROWS> {
  var s: array<vec4f, ROWS>;
  let rounds = (p.k + 3u) / 4u;
  for (var round = 0u; round < LIMIT; round++) {
    if (round >= rounds) { break; }
    var x: array<vec4f, ROWS / LANES>;
    for (var g = 0u; g < ROWS / LANES; g++) { x[g] = a_part(w, t, round, g); }
    let y = b_block(w, t, round);
    for (var r = 0u; r < ROWS; r++) {
      let z = a_four(x, r);
      s[r] += z.x * y[0];
      s[r] += z.y * y[1];
      s[r] += z.z * y[2];
      s[r] += z.w * y[3];
    }
  }
  return s;
}

// The loops over rows and columns of an epilogue have no small constant bound: unrolled, they take many seconds to compile.
@compute @workgroup_size(LANES)
fn strips(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  var sums = strip(w, t);
  let rows = min(p.m - w.y * ROWS, ROWS);
  let col = (w.x * LANES + t) * 4u;
  if (col >= p.n) { return; }
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= rows) { break; }
    store(w.z, w.y * ROWS + i, col, biased(col, sums[i]));
  }
}

// As above, and A·B + bias is kept: the backward of the activation needs it.
@compute @workgroup_size(LANES)
fn strips_kept(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  var sums = strip(w, t);
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
