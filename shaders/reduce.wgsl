// Σ x, Σ x², Σ a·b with a fixed tree: the same bits in every run, and an error far below that of one running sum.
//   sum, dot   a thread adds PER vec4 that lie a workgroup apart (neighbours read neighbours) and leaves one number
//   fold       a thread adds FOLD of those, a workgroup apart; repeated until few are left
//   finish     one workgroup: a strided sum per thread, then pairs, then · alpha
// The backward needs no kernel of its own: in the forward pass y was alpha · Σ x, so dx = alpha · dy in every element; for
// dot, da = dy · b and db = dy · a; for the squares dx = 2 dy · x (elementwise.wgsl).
// No barrier but in the last, which is small: on a software adapter barriers cost more than one dispatch more.

struct P { count: u32, first: u32, alpha: f32 }  // elements read; where this window's partial sums begin
var<immediate> p: P;

override SQUARE = false;
const PER = 32u;
const FOLD = 64u;
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> x: array<vec4f>;             // [count / 4], rounded up
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;      // [first + threads]

/// v with zeros for what lies beyond the array: a pooled buffer holds garbage there.
fn within(v: vec4f, i: u32) -> vec4f { return select(vec4f(), v, vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u) < vec4u(p.count)); }

@compute @workgroup_size(64)
fn sum(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  let vectors = (p.count + 3u) / 4u;
  if (w * 64u * PER >= vectors) { return; }
  var total = vec4f();
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= vectors) { break; }
    let v = within(x[at], at);
    total += select(v, v * v, SQUARE);
  }
  sums[p.first + w * 64u + t] = (total.x + total.y) + (total.z + total.w);
}

@group(0) @binding(0) var<storage, read> a: array<vec4f>;             // [count / 4], rounded up
@group(0) @binding(1) var<storage, read> b: array<vec4f>;             // [count / 4], rounded up
@group(0) @binding(2) var<storage, read_write> products: array<f32>;  // [first + threads]

@compute @workgroup_size(64)
fn dot_(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  let vectors = (p.count + 3u) / 4u;
  if (w * 64u * PER >= vectors) { return; }
  var total = vec4f();
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= vectors) { break; }
    total += within(a[at] * b[at], at);
  }
  products[p.first + w * 64u + t] = (total.x + total.y) + (total.z + total.w);
}

@group(0) @binding(0) var<storage, read> parts: array<f32>;           // [count]
@group(0) @binding(1) var<storage, read_write> folded: array<f32>;    // fold: [count / FOLD], rounded up; finish: [1]

@compute @workgroup_size(64)
fn fold(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let slot = (wid.x + wid.y * groups.x) * 64u + t;
  let slots = (p.count + FOLD - 1u) / FOLD;
  if (slot >= slots) { return; }
  var total = 0.0;
  for (var i = 0u; i < FOLD; i++) {
    let at = i * slots + slot;
    if (at >= p.count) { break; }
    total += parts[at];
  }
  folded[slot] = total;
}

var<workgroup> shared_: array<f32, 64>;

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
  var total = 0.0;
  for (var i = 0u; i < LIMIT; i++) {
    let at = i * 64u + t;
    if (at >= p.count) { break; }
    total += parts[at];
  }
  shared_[t] = total;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) { shared_[t] += shared_[t + half]; }
    workgroupBarrier();
  }
  if (t == 0u) { folded[0] = p.alpha * shared_[0]; }
}
