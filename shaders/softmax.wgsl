// Softmax and log-softmax over the last axis: y_i = exp(x_i − m)/l and y_i = x_i − m − log l, with m = max x, l = Σ exp(x_j − m).
// Rows may be two labels or thirty thousand words, so the work is cut in two ways: `statistics` and `sums` give each row to
// `parts` threads that take every parts-th vec4 and leave a partial result (no barrier: software adapters pay dearly for
// one); `combine…` joins the parts of a row in their order; `normalize` and `gradient` then run over the flat vec4s,
// whatever the row length is. Cross-entropy uses `statistics` too.
// The backward needs y only: softmax dx = y ⊙ (dy − Σ y·dy); log-softmax dx = dy − exp(y)·Σ dy.
// NaN is told by its bits: compilers may assume that there is none, and exp(NaN) is +∞ on SwiftShader.

struct P { rows: u32, c: u32, parts: u32, size: u32, per: u32 }  // size = rows · c; per: vec4s of a thread in the flat passes
var<immediate> p: P;

override logarithm: bool = false;
override aligned: bool = false;   // c is a multiple of 4: no vec4 straddles two rows

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;     // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞

fn isNan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
fn expNan(v: f32) -> f32 { return select(exp(v), v, isNan(v)); }
/// log l; NaN for NaN and for an empty sum, which not every adapter's log gives.
fn logSum(l: f32) -> f32 { return select(log(l), bitcast<f32>(0x7fc00000u | bitcast<u32>(l)), isNan(l) || l == 0.0); }
fn expNan4(v: vec4f) -> vec4f { return select(exp(v), v, (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u)); }

@group(0) @binding(0) var<storage, read> x: array<vec4f>;                  // [N, C], flat
@group(0) @binding(1) var<storage, read_write> partials: array<vec2f>;      // [N, parts] (max, Σ exp(x − max))

@compute @workgroup_size(64)
fn statistics(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = (wid.x + wid.y * groups.x) * 64u + t;
  if (w >= p.rows * p.parts) { return; }
  let row = w / p.parts;
  let first = row * p.c;
  let end = first + p.c;
  let start = first / 4u + (w - row * p.parts);
  var m = LOWEST;
  var l = 0.0;
  for (var i = 0u; i < LIMIT; i++) {
    let v = start + i * p.parts;
    if (4u * v >= end) { break; }
    let e = 4u * v + vec4u(0u, 1u, 2u, 3u);
    let value = x[v];
    let mine = vec4<bool>(aligned) | ((e >= vec4u(first)) & (e < vec4u(end)));
    let seen = select(vec4f(LOWEST), value, mine);
    let next = max(m, max(max(seen.x, seen.y), max(seen.z, seen.w)));
    let terms = select(vec4f(), expNan4(value - next), mine);
    l = l * exp(m - next) + ((terms.x + terms.y) + (terms.z + terms.w));
    m = next;
  }
  partials[w] = vec2f(m, l);
}

@group(0) @binding(0) var<storage, read> parts: array<vec2f>;              // [N, parts]
@group(0) @binding(1) var<storage, read_write> combined: array<vec2f>;     // [N] (max, Σ exp(x − max))

@compute @workgroup_size(64)
fn combineStatistics(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 64u + t;
  if (row >= p.rows) { return; }
  var m = LOWEST;
  var l = 0.0;
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.parts) { break; }
    let part = parts[row * p.parts + i];
    let next = max(m, part.x);
    l = l * exp(m - next) + part.y * exp(part.x - next);
    m = next;
  }
  combined[row] = vec2f(m, l);
}

@group(0) @binding(1) var<storage, read> stats: array<vec2f>;              // [N] (max, Σ exp(x − max))
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;            // [N, C], flat

fn normalized(value: f32, s: vec2f) -> f32 {
  if (logarithm) { return (value - s.x) - logSum(s.y); }
  return expNan(value - s.x) / s.y;
}

/// A thread's first vec4, and how many it has; they are 64 apart.
fn share(w: u32, t: u32) -> vec2u {
  let quads = (p.size + 3u) / 4u;
  let begin = w * 64u * p.per + t;
  if (begin >= quads) { return vec2u(); }
  return vec2u(begin, min(p.per, (quads - begin + 63u) / 64u));
}

@compute @workgroup_size(64)
fn normalize(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let v = mine.x + i * 64u;
    let value = x[v];
    var row = 4u * v / p.c;
    var s = stats[row];
    if (aligned) {
      y[v] = vec4f(normalized(value.x, s), normalized(value.y, s), normalized(value.z, s), normalized(value.w, s));
      continue;
    }
    var column = 4u * v - row * p.c;
    var out = vec4f();
    for (var j = 0u; j < 4u; j++) {
      out[j] = normalized(value[j], s);
      column++;
      if (column == p.c) { column = 0u; row = min(row + 1u, p.rows - 1u); s = stats[row]; }
    }
    y[v] = out;
  }
}

// Softmax: dx_i = Σ_j dy_j ∂y_j/∂x_i = Σ_j dy_j y_j (δ_ij − y_i) = y_i (dy_i − Σ_j y_j dy_j).
// Log-softmax: ∂y_j/∂x_i = δ_ij − exp(y_i), so dx_i = dy_i − exp(y_i) Σ_j dy_j.

@group(0) @binding(0) var<storage, read> output: array<vec4f>;             // [N, C], the forward's y
@group(0) @binding(1) var<storage, read> dy: array<vec4f>;                 // [N, C]
@group(0) @binding(2) var<storage, read_write> partialSum: array<f32>;     // [N, parts]

@compute @workgroup_size(64)
fn sums(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = (wid.x + wid.y * groups.x) * 64u + t;
  if (w >= p.rows * p.parts) { return; }
  let row = w / p.parts;
  let first = row * p.c;
  let end = first + p.c;
  let start = first / 4u + (w - row * p.parts);
  var sum = vec4f();
  for (var i = 0u; i < LIMIT; i++) {
    let v = start + i * p.parts;
    if (4u * v >= end) { break; }
    let e = 4u * v + vec4u(0u, 1u, 2u, 3u);
    let mine = vec4<bool>(aligned) | ((e >= vec4u(first)) & (e < vec4u(end)));
    sum += select(vec4f(), dy[v] * select(output[v], vec4f(1.0), vec4<bool>(logarithm)), mine);
  }
  partialSum[w] = (sum.x + sum.y) + (sum.z + sum.w);
}

@group(0) @binding(0) var<storage, read> partSums: array<f32>;             // [N, parts]
@group(0) @binding(1) var<storage, read_write> rowSums: array<f32>;        // [N]

@compute @workgroup_size(64)
fn combineSums(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 64u + t;
  if (row >= p.rows) { return; }
  var sum = 0.0;
  for (var i = 0u; i < LIMIT; i++) { if (i >= p.parts) { break; } sum += partSums[row * p.parts + i]; }
  rowSums[row] = sum;
}

@group(0) @binding(2) var<storage, read> totals: array<f32>;               // [N]
@group(0) @binding(3) var<storage, read_write> dx: array<vec4f>;           // [N, C], flat

fn vjp(value: f32, dvalue: f32, sum: f32) -> f32 {
  if (logarithm) { return dvalue - expNan(value) * sum; }
  return value * (dvalue - sum);
}

@compute @workgroup_size(64)
fn gradient(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let v = mine.x + i * 64u;
    let value = output[v];
    let d = dy[v];
    var row = 4u * v / p.c;
    var s = totals[row];
    if (aligned) {
      dx[v] = vec4f(vjp(value.x, d.x, s), vjp(value.y, d.y, s), vjp(value.z, d.z, s), vjp(value.w, d.w, s));
      continue;
    }
    var column = 4u * v - row * p.c;
    var out = vec4f();
    for (var j = 0u; j < 4u; j++) {
      out[j] = vjp(value[j], d[j], s);
      column++;
      if (column == p.c) { column = 0u; row = min(row + 1u, p.rows - 1u); s = totals[row]; }
    }
    dx[v] = out;
  }
}
