// Operations element by element: a row of a table each, the value and its derivative side by side. What a call does not
// use (the derivative in a forward pass) is dead code to the compiler, as are the other rows: OP is a constant.
//   unary    y = f(x)                 unary_backward   dx = f'(x)·dy
//   binary   y = a ∘ b                binary_backward  da = ∂y/∂a·dy, db = ∂y/∂b·dy
//   scale    y = alpha·x + shift      add_into         target += alpha·x, in place
//   fill     every word = bits        broadcast        every element = alpha·scalar
//   add_row  y = x + row, row by row; add_row4 where C is a multiple of 4
// A thread owns up to `per` vec4 and the threads of a workgroup lie side by side. An array whose size is no multiple of 4
// ends in a vec4 that is partly padding: computed like the rest in a fresh array, and kept as it was in place.

struct P { size: u32, per: u32, alpha: f32, shift: f32, bits: u32, c: u32 }
var<immediate> p: P;

override OP = 0u;
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

/// A thread's first vec4, and how many it has; they are 64 apart.
fn share(w: u32, t: u32) -> vec2u {
  let quads = (p.size + 3u) / 4u;
  let begin = w * 64u * p.per + t;
  if (begin >= quads) { return vec2u(); }
  return vec2u(begin, min(p.per, (quads - begin + 63u) / 64u));
}

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

// ---- one operand

struct Unary { y: vec4f, d: vec4f }  // f(x), f'(x)

// SwiftShader has exp(NaN) = ∞, log(−x) = log(x), log(0) = −88; an error must stay visible.
fn expNan4(v: vec4f) -> vec4f { return select(exp(v), v, (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u)); }
fn log_(x: vec4f) -> vec4f {
  let y = select(sqrt(x), log(x), x >= vec4f(0.0));  // the root of a number below 0 is NaN
  return select(y, -1.0 / abs(x), x == vec4f(0.0));
}

// NaN fails both comparisons, and is its own slope.
fn slope(x: vec4f, below: f32, above: f32) -> vec4f {
  return select(select(x, vec4f(below), x < vec4f(0.0)), vec4f(above), x > vec4f(0.0));
}

fn unary_table(x: vec4f) -> Unary {
  switch OP {
    case 0u: {  // gelu: x·Φ(x), Φ(x) + x·φ(x), φ(x) = bell(x)/√(2π)
      let r = mills(reach(x));
      let above = x > vec4f(0.0);
      return Unary(gelu(x), select(vec4f(), vec4f(1.0), above) + bell(x) * (0.398942280 * x + select(r, -r, above)));
    }
    case 1u: {  // gelu_tanh: x/2·(1 + t), t = tanh(k·(x + c·x³)). x·(1 − t²) first: it is 0 where x² would overflow.
      let t = tanh_(0.797884561 * (x + 0.044715 * x * x * x));
      let w = x * (1.0 - t * t);
      return Unary(gelu_tanh(x), 0.5 * (1.0 + t) + 0.398942280 * w + 0.0535161144 * (w * x * x));
    }
    case 2u: { let t = tanh_(x); return Unary(t, 1.0 - t * t); }
    case 3u: { return Unary(relu(x), slope(x, 0.0, 1.0)); }
    case 4u: { let s = 1.0 / (1.0 + expNan4(-x)); return Unary(silu(x), s * (1.0 + x * (1.0 - s))); }
    case 5u: { let s = 1.0 / (1.0 + expNan4(-x)); return Unary(s, s * (1.0 - s)); }  // sigmoid
    case 6u: { let e = expNan4(x); return Unary(e, e); }
    case 7u: { return Unary(log_(x), 1.0 / x); }
    case 8u: { return Unary(-x, vec4f(-1.0)); }
    case 9u: { return Unary(x * x, 2.0 * x); }
    case 10u: { let r = sqrt(x); return Unary(r, 0.5 / r); }
    default: { return Unary(abs(x), slope(x, -1.0, 1.0)); }
  }
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;         // [size / 4], rounded up
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;   // [size / 4], rounded up
@group(0) @binding(1) var<storage, read> dy1: array<vec4f>;       // [size / 4], rounded up
@group(0) @binding(2) var<storage, read_write> dx: array<vec4f>;  // [size / 4], rounded up

@compute @workgroup_size(64)
fn unary(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    y[q] = unary_table(x[q]).y;
  }
}

@compute @workgroup_size(64)
fn unary_backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    dx[q] = unary_table(x[q]).d * dy1[q];
  }
}

@compute @workgroup_size(64)
fn scale(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    y[q] = p.alpha * x[q] + p.shift;
  }
}

// ---- two operands of one shape

struct Binary { y: vec4f, da: vec4f, db: vec4f }  // a ∘ b and its gradients for the upstream gradient dy

fn binary_table(a: vec4f, b: vec4f, dy: vec4f) -> Binary {
  switch OP {
    case 0u: { return Binary(a + b, dy, dy); }
    case 1u: { return Binary(a - b, dy, -dy); }
    case 2u: { return Binary(a * b, dy * b, dy * a); }
    default: { let r = dy / b; return Binary(a / b, r, -r * (a / b)); }
  }
}

@group(0) @binding(0) var<storage, read> a: array<vec4f>;         // [size / 4], rounded up
@group(0) @binding(1) var<storage, read> b: array<vec4f>;         // [size / 4], rounded up
@group(0) @binding(2) var<storage, read_write> ab: array<vec4f>;  // [size / 4], rounded up
@group(0) @binding(2) var<storage, read> dy2: array<vec4f>;       // [size / 4], rounded up
@group(0) @binding(3) var<storage, read_write> da: array<vec4f>;  // [size / 4], rounded up
@group(0) @binding(4) var<storage, read_write> db: array<vec4f>;  // [size / 4], rounded up

@compute @workgroup_size(64)
fn binary(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    ab[q] = binary_table(a[q], b[q], vec4f()).y;
  }
}

@compute @workgroup_size(64)
fn binary_backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    let g = binary_table(a[q], b[q], dy2[q]);
    da[q] = g.da;
    db[q] = g.db;
  }
}

// ---- in place, and from less than an array

@group(0) @binding(1) var<storage, read_write> into: array<vec4f>;  // [size / 4], rounded up
@group(0) @binding(0) var<storage, read_write> words: array<vec4u>;   // [size / 4], rounded up
@group(0) @binding(0) var<storage, read> scalar: array<f32>;          // [1]
@group(0) @binding(2) var<storage, read> row: array<f32>;             // [C]

/// The column after this one, around the end of the row.
fn next(column: u32) -> u32 { return select(column + 1u, 0u, column + 1u == p.c); }

/// Which of vec4 q's elements are the array's and which are padding.
fn inside(q: u32) -> vec4<bool> { return vec4u(4u * q) + vec4u(0u, 1u, 2u, 3u) < vec4u(p.size); }

@compute @workgroup_size(64)
fn add_into(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    let old = into[q];
    into[q] = select(old, old + p.alpha * x[q], inside(q));
  }
}

@compute @workgroup_size(64)
fn fill(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    if (4u * q + 4u <= p.size) { words[q] = vec4u(p.bits); } else { words[q] = select(words[q], vec4u(p.bits), inside(q)); }
  }
}

@compute @workgroup_size(64)
fn broadcast(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  let value = vec4f(p.alpha * scalar[0]);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    y[q] = value;
  }
}

@compute @workgroup_size(64)
fn add_row(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  let step = 256u % p.c;
  var column = (4u * mine.x) % p.c;
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    // Any C: a vec4 may span the end of a row, of several when C < 4.
    let d = next(column);
    let e = next(d);
    y[q] = x[q] + vec4f(row[column], row[d], row[e], row[next(e)]);
    column += step;
    if (column >= p.c) { column -= p.c; }
  }
}

// A thread keeps one vec4 of the row and goes down `per` rows with it: the row is not loaded again for every row of x.
@group(0) @binding(2) var<storage, read> row4: array<vec4f>;          // [C / 4]

@compute @workgroup_size(64)
fn add_row4(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let width = p.c / 4u;
  let block = id / width;
  let column = id - block * width;
  let quads = p.size / 4u;
  let begin = block * p.per * width + column;
  let end = min(begin + p.per * width, quads);
  if (begin >= quads) { return; }
  let addend = row4[column];
  var q = begin;
  for (var i = 0u; i < LIMIT; i++) {
    if (q >= end) { break; }
    y[q] = x[q] + addend;
    q += width;
  }
}
