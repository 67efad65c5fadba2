// Rows times a vector, a vector for each segment: x is S segments of n rows each, y = x[m·n + i] ⊙ v[m]. This is what
// makes the members of a rank-one ensemble: W_m = W ⊙ r_m s_mᵀ, so W_m x = r_m ⊙ W(s_m ⊙ x) and one product with the
// shared W serves all members (Wen, Tran and Ba, "BatchEnsemble", 2020).
//   scale    a thread one vec4 of a row; dx is the same with dy for x
//   partial, finish   dv[m] = Σᵢ dy[m·n + i] ⊙ x[m·n + i] in two stages, always added in the same order:
//     partial  a thread adds the rows of one block of one segment, one vec4 wide
//     finish   a thread adds a segment's blocks, and puts or adds the result where it belongs

// --- tile
alias V = vec4f;  // f32 where C is no multiple of 4
// --- end

struct P { segments: u32, rows: u32, width: u32, block: u32, accumulate: u32 }  // rows: of a segment; width: V in a row
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> x: array<V>;         // scale, partial: [S·n, width]; finish: [S·blocks, width]
@group(0) @binding(1) var<storage, read_write> y: array<V>;   // scale: [S·n, width]; partial: [S·blocks, width]; finish: [S, width]
@group(0) @binding(2) var<storage, read> other: array<V>;     // scale: v [S, width]; partial: dy [S·n, width]

@compute @workgroup_size(64)
fn scale(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = (wid.x + wid.y * groups.x) * 64u + t;
  let each = p.rows * p.width;
  if (at >= p.segments * each) { return; }
  y[at] = x[at] * other[at / each * p.width + at % p.width];
}

// In the forward pass row i of segment m was x ⊙ v[m]: dx = dy ⊙ v[m], and every row of the segment adds dy ⊙ x to dv[m].
@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let column = id % p.width;
  let blocks = (p.rows + p.block - 1u) / p.block;
  let segment = id / p.width / blocks;
  let begin = (id / p.width % blocks) * p.block;
  if (segment >= p.segments) { return; }
  let count = min(p.block, p.rows - begin);
  var at = (segment * p.rows + begin) * p.width + column;
  var sum = V();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= count) { break; }
    sum += x[at] * other[at];
    at += p.width;
  }
  y[id] = sum;
}

@compute @workgroup_size(64)
fn finish(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  if (id >= p.segments * p.width) { return; }
  // Here a segment's rows are its blocks' sums.
  let first = id / p.width * p.rows * p.width + id % p.width;
  var sum = V();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.rows) { break; }
    sum += x[first + i * p.width];
  }
  if (p.accumulate != 0u) { sum += y[id]; }
  y[id] = sum;
}
