// Attention over packed sequences for lavapipe: the formulas of attention.wgsl, another way through them.
// There a load is one scalar load for each lane, so that loads are the cost. One subgroup of LANES threads is a workgroup and
// owns a tile of LANES rows of one head. Lane t holds its own row (q; in the backward also dy, or k and v) in registers, and
// loads of each key the t-th vec4 only: neighbouring addresses, one load a key. The others get it by subgroupBroadcast:
//   own row · key       a lane adds up its own row times every lane's vec4: the score of its row
//   weights × values    a lane keeps its vec4 of all rows' sums: it adds every lane's weight times the vec4 it has loaded
// So 32 multiply-adds of 8 lanes come to 4 scalar loads. No workgroup memory, no barrier.
// A lane beyond the end of its tile repeats the last row and stores nothing, one beyond the end of the head adds zeros.
enable subgroups;

struct P { pairs: u32, heads: u32, scale: f32, threshold: u32, keepScale: f32, d4: u32, key: vec2u }  // pairs = tiles · heads
var<immediate> p: P;

override dropout: bool = false;

// --- tile
const D4 = 8u;                 // vec4s of a head: D / 4
const LANES = 8u;              // subgroup size: 4 or 8
// --- end
const PER = (D4 + LANES - 1u) / LANES;  // vec4s of a row in one lane
const LIMIT = 0xffffffffu;     // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;  // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞

alias Slice = array<vec4f, PER>;          // of one row, the vec4s t, t + LANES … of lane t
alias Rows = array<vec4f, PER * LANES>;   // a whole row of one lane; or the slices of LANES rows, [i · LANES + row]

fn isNan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
fn expNan(v: f32) -> f32 { return select(exp(v), v, isNan(v)); }
/// log l; NaN for NaN and for an empty sum, which not every adapter's log gives.
fn logSum(l: f32) -> f32 { return select(log(l), bitcast<f32>(0x7fc00000u | bitcast<u32>(l)), isNan(l) || l == 0.0); }

/// Twenty rounds of add, rotate, xor; a word of the key after each four.
fn threefry2x32(key: vec2u, counter: vec2u) -> vec2u {
  let k2 = key.x ^ key.y ^ 0x1bd11bdau;
  var a = counter.x + key.x;
  var b = counter.y + key.y;
  a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
  a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
  a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
  a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
  a += key.y; b += k2 + 1u;
  a += b; b = ((b << 17u) | (b >> 15u)) ^ a;
  a += b; b = ((b << 29u) | (b >> 3u)) ^ a;
  a += b; b = ((b << 16u) | (b >> 16u)) ^ a;
  a += b; b = ((b << 24u) | (b >> 8u)) ^ a;
  a += k2; b += key.x + 2u;
  a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
  a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
  a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
  a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
  a += key.x; b += key.y + 3u;
  a += b; b = ((b << 17u) | (b >> 15u)) ^ a;
  a += b; b = ((b << 29u) | (b >> 3u)) ^ a;
  a += b; b = ((b << 16u) | (b >> 16u)) ^ a;
  a += b; b = ((b << 24u) | (b >> 8u)) ^ a;
  a += key.y; b += k2 + 4u;
  a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
  a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
  a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
  a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
  a += k2; b += key.x + 5u;
  return vec2u(a, b);
}

/// The two words whose 16-bit lanes say whether query row n of head h keeps the key positions 4·block … 4·block + 3.
fn maskWords(n: u32, h: u32, block: u32) -> vec2u { return threefry2x32(p.key, vec2u(n, h * 65536u + block)); }
/// M for key position j, from the words of its block.
fn maskFrom(words: vec2u, j: u32) -> f32 {
  let word = select(words.x, words.y, (j & 2u) != 0u);
  return select(0.0, p.keepScale, ((word >> (16u * (j & 1u))) & 0xffffu) < p.threshold);
}

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;              // [N, 3C]: q | k | v, each with its heads side by side
@group(0) @binding(1) var<storage, read> tiles: array<vec4u>;            // [tiles] (first row, end row, first of the sequence, its end)
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;          // [N, C]
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [N, H]
@group(0) @binding(4) var<storage, read> dy: array<vec4f>;               // [N, C]

/// A whole row of one head that begins at vec4 `at`, times a factor. The bound is a parameter since drivers unroll a short
/// constant loop, and compile these loads for seconds.
fn ownRow(at: u32, factor: f32) -> Rows {
  var row: Rows;
  for (var d = 0u; d < LIMIT; d++) { if (d >= p.d4) { break; } row[d] = qkv[at + d] * factor; }
  return row;
}
fn ownRowOfDy(at: u32) -> Rows {
  var row: Rows;
  for (var d = 0u; d < LIMIT; d++) { if (d >= p.d4) { break; } row[d] = dy[at + d]; }
  return row;
}
fn sliceOf(at: u32, t: u32) -> Slice {
  var part: Slice;
  for (var i = 0u; i < PER; i++) {
    let d = i * LANES + t;
    part[i] = select(vec4f(), qkv[at + min(d, D4 - 1u)], d < D4);
  }
  return part;
}
fn sliceOfDy(at: u32, t: u32) -> Slice {
  var part: Slice;
  for (var i = 0u; i < PER; i++) {
    let d = i * LANES + t;
    part[i] = select(vec4f(), dy[at + min(d, D4 - 1u)], d < D4);
  }
  return part;
}

/// The lane's own row · the row whose slices lie in all lanes.
fn ownDot(row: ptr<function, Rows>, part: ptr<function, Slice>) -> f32 {
  var s = vec4f();
  for (var i = 0u; i < PER; i++) {
    let x = (*part)[i];
    let d = i * LANES;
    s += (*row)[d] * subgroupBroadcast(x, 0u);
    s += (*row)[d + 1u] * subgroupBroadcast(x, 1u);
    s += (*row)[d + 2u] * subgroupBroadcast(x, 2u);
    s += (*row)[d + 3u] * subgroupBroadcast(x, 3u);
    if (LANES == 8u && d + 4u < D4) {
      s += (*row)[d + 4u % LANES] * subgroupBroadcast(x, 4u % LANES);
      s += (*row)[d + 5u % LANES] * subgroupBroadcast(x, 5u % LANES);
      s += (*row)[d + 6u % LANES] * subgroupBroadcast(x, 6u % LANES);
      s += (*row)[d + 7u % LANES] * subgroupBroadcast(x, 7u % LANES);
    }
  }
  return (s.x + s.y) + (s.z + s.w);
}

/// The sums of all rows += each row's weight (in the lane of the row) × the row in `part`.
fn addWeighted(sums: ptr<function, Rows>, weight: f32, part: ptr<function, Slice>) {
  for (var i = 0u; i < PER; i++) {
    let x = (*part)[i];
    let d = i * LANES;
    (*sums)[d] += subgroupBroadcast(weight, 0u) * x;
    (*sums)[d + 1u] += subgroupBroadcast(weight, 1u) * x;
    (*sums)[d + 2u] += subgroupBroadcast(weight, 2u) * x;
    (*sums)[d + 3u] += subgroupBroadcast(weight, 3u) * x;
    if (LANES == 8u) {
      (*sums)[d + 4u % LANES] += subgroupBroadcast(weight, 4u % LANES) * x;
      (*sums)[d + 5u % LANES] += subgroupBroadcast(weight, 5u % LANES) * x;
      (*sums)[d + 6u % LANES] += subgroupBroadcast(weight, 6u % LANES) * x;
      (*sums)[d + 7u % LANES] += subgroupBroadcast(weight, 7u % LANES) * x;
    }
  }
}

/// The sums of all rows times each row's factor (in the lane of the row). The compiler does not know that after a
/// subgroupAny all lanes go the same way.
@diagnostic(off, subgroup_uniformity)
fn multiplyRows(sums: ptr<function, Rows>, factor: f32) {
  for (var i = 0u; i < PER; i++) {
    let d = i * LANES;
    (*sums)[d] *= subgroupBroadcast(factor, 0u);
    (*sums)[d + 1u] *= subgroupBroadcast(factor, 1u);
    (*sums)[d + 2u] *= subgroupBroadcast(factor, 2u);
    (*sums)[d + 3u] *= subgroupBroadcast(factor, 3u);
    if (LANES == 8u) {
      (*sums)[d + 4u % LANES] *= subgroupBroadcast(factor, 4u % LANES);
      (*sums)[d + 5u % LANES] *= subgroupBroadcast(factor, 5u % LANES);
      (*sums)[d + 6u % LANES] *= subgroupBroadcast(factor, 6u % LANES);
      (*sums)[d + 7u % LANES] *= subgroupBroadcast(factor, 7u % LANES);
    }
  }
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let n = min(tile.x + t, tile.y - 1u);
  let c4 = p.heads * D4;
  let at = h * D4;
  var q = ownRow(n * 3u * c4 + at, p.scale);
  var sums: Rows;
  var m = LOWEST;
  var l = 0.0;
  let keys = tile.w - tile.z;
  var words = vec2u();
  for (var j = 0u; j < LIMIT; j++) {
    if (j >= keys) { break; }
    if (dropout && (j & 3u) == 0u) { words = maskWords(n, h, j / 4u); }
    let key = (tile.z + j) * 3u * c4 + c4 + at;
    var k = sliceOf(key, t);
    let s = ownDot(&q, &k);
    let next = max(m, s);
    let shrink = exp(m - next);  // what is summed so far was relative to the old maximum
    var w = expNan(s - next);
    l = l * shrink + w;
    let risen = subgroupAny(next != m);
    m = next;
    if (dropout) { w *= maskFrom(words, j); }
    var v = sliceOf(key + c4, t);
    if (risen) { multiplyRows(&sums, shrink); }  // else all factors are 1, as they are for most keys
    addWeighted(&sums, w, &v);
  }
  multiplyRows(&sums, 1.0 / l);
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= tile.y - tile.x) { break; }
    for (var i = 0u; i < PER; i++) {
      let d = i * LANES + t;
      if (d < D4) { y[(tile.x + r) * c4 + at + d] = sums[i * LANES + r]; }
    }
  }
  if (tile.x + t < tile.y) { lse[n * p.heads + h] = m + logSum(l); }
}

// The derivation stands in attention.wgsl. Lanes hold query rows in `backwardQuery`, key rows in `backwardKey`.

@group(0) @binding(2) var<storage, read> output: array<vec4f>;           // [N, C], the forward's y
@group(0) @binding(3) var<storage, read> kept: array<f32>;               // [N, H], the forward's lse
@group(0) @binding(5) var<storage, read_write> deltaOut: array<f32>;     // [N, H]
@group(0) @binding(6) var<storage, read_write> dqkv: array<vec4f>;       // [N, 3C]

@compute @workgroup_size(LANES)
fn backwardQuery(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let n = min(tile.x + t, tile.y - 1u);
  let c4 = p.heads * D4;
  let at = h * D4;
  var q = ownRow(n * 3u * c4 + at, p.scale);
  var g = ownRowOfDy(n * c4 + at);
  var dq: Rows;
  var delta = 0.0;
  for (var d = 0u; d < LIMIT; d++) { if (d >= p.d4) { break; } delta += dot(g[d], output[n * c4 + at + d]); }
  let logTotal = kept[n * p.heads + h];
  let keys = tile.w - tile.z;
  var words = vec2u();
  for (var j = 0u; j < LIMIT; j++) {
    if (j >= keys) { break; }
    if (dropout && (j & 3u) == 0u) { words = maskWords(n, h, j / 4u); }
    let key = (tile.z + j) * 3u * c4 + c4 + at;
    var k = sliceOf(key, t);
    var v = sliceOf(key + c4, t);
    var dp = ownDot(&g, &v);
    if (dropout) { dp *= maskFrom(words, j); }
    addWeighted(&dq, expNan(ownDot(&q, &k) - logTotal) * (dp - delta), &k);
  }
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= tile.y - tile.x) { break; }
    for (var i = 0u; i < PER; i++) {
      let d = i * LANES + t;
      if (d < D4) { dqkv[(tile.x + r) * 3u * c4 + at + d] = dq[i * LANES + r] * p.scale; }
    }
  }
  if (tile.x + t < tile.y) { deltaOut[n * p.heads + h] = delta; }
}

@group(0) @binding(2) var<storage, read> deltaIn: array<f32>;            // [N, H]
@group(0) @binding(5) var<storage, read_write> dkv: array<vec4f>;        // [N, 3C]

@compute @workgroup_size(LANES)
fn backwardKey(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let row = min(tile.x + t, tile.y - 1u);
  let c4 = p.heads * D4;
  let at = h * D4;
  var k = ownRow(row * 3u * c4 + c4 + at, p.scale);
  var v = ownRow(row * 3u * c4 + 2u * c4 + at, 1.0);
  var dk: Rows;
  var dv: Rows;
  // A tile begins at a multiple of LANES in its sequence, so its keys lie in LANES / 4 blocks of the mask: one Threefry a
  // lane makes all that four queries need.
  let j = row - tile.z;
  var words = vec2u();
  for (var i = 0u; i < LIMIT; i++) {
    let n = tile.z + i;
    if (n >= tile.w) { break; }
    if (dropout && (i & 3u) == 0u) {
      words = maskWords(n + t / (LANES / 4u), h, (tile.x - tile.z) / 4u + t % (LANES / 4u));
    }
    var q = sliceOf(n * 3u * c4 + at, t);
    var g = sliceOfDy(n * c4 + at, t);
    let w = expNan(ownDot(&k, &q) - kept[n * p.heads + h]);
    var dp = ownDot(&v, &g);
    var dropped = w;
    if (dropout) {
      let keep = maskFrom(subgroupShuffle(words, (i & 3u) * (LANES / 4u) + (row - tile.x) / 4u), j);
      dp *= keep;
      dropped *= keep;
    }
    addWeighted(&dk, w * (dp - deltaIn[n * p.heads + h]), &q);
    addWeighted(&dv, dropped, &g);
  }
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= tile.y - tile.x) { break; }
    for (var i = 0u; i < PER; i++) {
      let d = i * LANES + t;
      let goal = (tile.x + r) * 3u * c4 + c4 + at + d;
      if (d < D4) {
        dkv[goal] = dk[i * LANES + r] * p.scale;
        dkv[goal + c4] = dv[i * LANES + r];
      }
    }
  }
}
