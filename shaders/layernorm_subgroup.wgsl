// The backward of layer normalisation in one pass for dx, dγ and dβ; layernorm.wgsl derives the formulas. For adapters whose
// loads are as many scalar loads as there are lanes, even where all lanes want one address (CPUs).
// A workgroup is one subgroup of SIZE threads and owns SIZE rows. First lane t walks along row t for its two sums, so that
// they need no reduction; γ, which all rows share, is loaded for SIZE columns at once, one V a lane, and handed round by
// subgroupShuffle. Then it turns: lane t owns the columns t, t + SIZE, … and goes down the rows, whose statistics are handed
// round, so that the block's dγ and dβ come from the loads of dx. No workgroup memory, no barrier.
// A lane beyond the last row or column repeats the last one and stores nothing.
enable subgroups;

// --- tile
alias V = vec4f;      // f32 where C is no multiple of 4
const LANES = 4u;     // 1
const SHARE = 1.0;    // 0.25: V's lanes among the four that `total` adds
const SIZE = 8u;      // subgroup size
// --- end

struct P { rows: u32, width: u32, size: u32 }  // width: V in a row; size: SIZE, since drivers unroll a short constant loop
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

/// The sum of the lanes. vec4f(v) leaves a vec4 alone and repeats a scalar four times.
fn total(v: V) -> f32 { let w = vec4f(v); return ((w.x + w.y) + (w.z + w.w)) * SHARE; }

// With g = γ ⊙ dy: dx = rstd·(g − mean(g) − x̂·mean(g ⊙ x̂)), dγ = Σₙ dy ⊙ x̂, dβ = Σₙ dy.

@group(0) @binding(0) var<storage, read> dy: array<V>;                // [N, width]
@group(0) @binding(1) var<storage, read> xb: array<V>;                // [N, width]
@group(0) @binding(2) var<storage, read> saved: array<vec2f>;         // [N] (mean, rstd)
@group(0) @binding(3) var<storage, read> gammaB: array<V>;            // [width]
@group(0) @binding(4) var<storage, read_write> dx: array<V>;          // [N, width]
@group(0) @binding(5) var<storage, read_write> gammaSums: array<V>;   // [blocks, width], a block being SIZE rows
@group(0) @binding(6) var<storage, read_write> betaSums: array<V>;    // [blocks, width]

@compute @workgroup_size(SIZE)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let block = wid.x + wid.y * groups.x;
  let first = block * SIZE;
  if (first >= p.rows) { return; }
  let row = min(first + t, p.rows - 1u);
  let s = saved[row];
  var sumG = V();
  var sumGX = V();
  for (var chunk = 0u; chunk < LIMIT; chunk++) {
    let begin = chunk * SIZE;
    if (begin >= p.width) { break; }
    let part = gammaB[min(begin + t, p.width - 1u)];
    for (var j = 0u; j < LIMIT; j++) {
      if (j >= min(p.size, p.width - begin)) { break; }
      let at = row * p.width + begin + j;
      let g = subgroupShuffle(part, j) * dy[at];
      sumG += g;
      sumGX += g * ((xb[at] - V(s.x)) * s.y);
    }
  }
  let c = f32(p.width * LANES);
  let meanG = total(sumG) / c;
  let meanGX = total(sumGX) / c;
  for (var chunk = 0u; chunk < LIMIT; chunk++) {
    if (chunk * SIZE >= p.width) { break; }
    let column = chunk * SIZE + t;
    let mine = column < p.width;
    let near = min(column, p.width - 1u);
    let g = gammaB[near];
    var dg = V();
    var db = V();
    for (var r = 0u; r < LIMIT; r++) {
      if (r >= min(p.size, p.rows - first)) { break; }
      let at = (first + r) * p.width + near;
      let d = dy[at];
      let rstd = subgroupShuffle(s.y, r);
      let xHat = (xb[at] - V(subgroupShuffle(s.x, r))) * rstd;
      let slope = rstd * (g * d - V(subgroupShuffle(meanG, r)) - xHat * subgroupShuffle(meanGX, r));
      if (mine) { dx[at] = slope; }
      dg += d * xHat;
      db += d;
    }
    if (mine) {
      gammaSums[block * p.width + column] = dg;
      betaSums[block * p.width + column] = db;
    }
  }
}
