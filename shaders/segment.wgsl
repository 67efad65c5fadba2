// Readouts over packed sequences: sequence b has the rows starts[b] … starts[b+1] − 1 of x.
//   mean      y[b] = Σ x[n] / length        so   dx[n] = dy[b] / length for every n of b
//   maximum   y[b] = max x[n], per channel  so   dx[n] = dy[b] where n is the (first) maximum, else 0
// One thread does one column of one sequence, forward and backward; neighbours have neighbouring columns. Sequences do
// not overlap, so no two threads write the same element. A sequence without rows gives 0.
// NaN: the first NaN of a column is its maximum (by exponent and fraction bits, since WGSL may assume that there is none).

struct P { sequences: u32, columns: u32 }  // columns: in units of T
var<immediate> p: P;

// --- tile
alias T = vec4f;  // f32 where the number of channels is no multiple of 4
alias U = vec4u;  // u32 likewise
alias Q = vec4<bool>;  // bool likewise
// --- end
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const NOWHERE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> starts: array<u32>;               // [B + 1]
@group(0) @binding(1) var<storage, read> x: array<T>;                      // mean, maximum: [N, C]; meanBackward: dy [B, C]
@group(0) @binding(2) var<storage, read_write> y: array<T>;                // mean, maximum: [B, C]; meanBackward: dx [N, C]
@group(0) @binding(3) var<storage, read_write> argmax: array<U>;           // [B, C]

@compute @workgroup_size(64)
fn mean(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = (wid.x + wid.y * groups.x) * 64u + t;
  if (at >= p.sequences * p.columns) { return; }
  let b = at / p.columns;
  let begin = starts[b];
  let length = starts[b + 1u] - begin;
  var total = T();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= length) { break; }
    total += x[(begin + i) * p.columns + at % p.columns];
  }
  y[at] = total / f32(max(length, 1u));
}

@compute @workgroup_size(64)
fn meanBackward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = (wid.x + wid.y * groups.x) * 64u + t;
  if (at >= p.sequences * p.columns) { return; }
  let b = at / p.columns;
  let begin = starts[b];
  let length = starts[b + 1u] - begin;
  let share = x[at] / f32(max(length, 1u));
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= length) { break; }
    y[(begin + i) * p.columns + at % p.columns] = share;
  }
}

fn nanLanes(v: T) -> Q { return (bitcast<U>(v) & U(0x7fffffffu)) > U(0x7f800000u); }

@compute @workgroup_size(64)
fn maximum(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = (wid.x + wid.y * groups.x) * 64u + t;
  if (at >= p.sequences * p.columns) { return; }
  let b = at / p.columns;
  let begin = starts[b];
  let length = starts[b + 1u] - begin;
  if (length == 0u) {
    y[at] = T();
    argmax[at] = U(NOWHERE);
    return;
  }
  var best = x[begin * p.columns + at % p.columns];
  var where_ = U(begin);
  for (var i = 1u; i < LIMIT; i++) {
    if (i >= length) { break; }
    let v = x[(begin + i) * p.columns + at % p.columns];
    let better = ((v > best) | nanLanes(v)) & !nanLanes(best);
    best = select(best, v, better);
    where_ = select(where_, U(begin + i), better);
  }
  y[at] = best;
  argmax[at] = where_;
}

@group(0) @binding(0) var<storage, read> chosen: array<u32>;               // argmax [B, C]
@group(0) @binding(1) var<storage, read> dy: array<f32>;                   // [B, C]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;             // [N, C], zeros before

@compute @workgroup_size(64)
fn maximumBackward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = (wid.x + wid.y * groups.x) * 64u + t;
  if (at >= p.sequences * p.columns) { return; }
  if (chosen[at] != NOWHERE) { dx[chosen[at] * p.columns + at % p.columns] = dy[at]; }
}
