// Attention over packed sequences for lavapipe: the formulas of attention.wgsl, another way through them.
// There a load is one scalar load for each lane, so that loads are the cost. One subgroup of LANES threads is a workgroup and
// owns a tile of 4·LANES rows of one head. Lane t holds rows t, LANES + t, 2·LANES + t, 3·LANES + t of the tile whole (q; in the
// backward k and v), and their sums. A round takes four keys (in the backward four queries): the lanes together load them
// once, the t-th vec4 by lane t, and hand each number on by subgroupShuffle to be multiplied with four rows. So a vec4 loaded
// serves 128 multiply-adds of 8 lanes, and in the forward no sum crosses lanes. The scores of a round stay in registers:
//   own rows · key      a round's scores are a vec4 a key, a number for each of the lane's rows
//   weights × values    a row's sums take all four keys at once, since a sum that a loop carries costs a mask and the stack
// No workgroup memory, no barrier. Loops with the bound D4 are to be unrolled: lane numbers and places in arrays are constants
// then. Each does for one key or one row, since Mesa unrolls only what is short; those at both ends of a kernel count to p.d4,
// since a load unrolled is 300 instructions, and so keep the arrays in memory: as values that a loop carries they compile
// three times as long. A variable array in a loop is set as a whole in every round: lavapipe leaves in it what was there.
// A lane beyond the end of its tile repeats the last row and stores nothing. A key beyond the end of the sequence is zeros with
// a score of −∞, so that its weight is 0.
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
const LOG2E = 1.44269504;      // scores are held as logarithms to base 2, for exp2
const LN2 = 0.693147181;

alias Slice = array<vec4f, PER>;                      // of one row, the vec4s t, t + LANES … of lane t
struct Slices { a: Slice, b: Slice, c: Slice, d: Slice }  // of four rows
alias Rows = array<vec4f, 4u * D4>;                   // the lane's four whole rows: vec4 e of row i at [i · D4 + e]
alias Round = array<vec4f, 4>;                        // [key], a number for each of the lane's rows

fn isNan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
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

/// The lane's rows of a tile, of arrays `width` vec4s wide, from vec4 `at` of each, times a factor.
fn own(tile: vec4u, width: u32, at: u32, t: u32, factor: f32) -> Rows {
  var rows = Rows();
  for (var i = 0u; i < LIMIT; i++) {
    if (tile.x + i * LANES >= tile.y) { break; }
    let first = min(tile.x + i * LANES + t, tile.y - 1u) * width + at;
    for (var e = 0u; e < LIMIT; e++) { if (e >= p.d4) { break; } rows[i * D4 + e] = qkv[first + e] * factor; }
  }
  return rows;
}
fn ownDy(tile: vec4u, width: u32, at: u32, t: u32) -> Rows {
  var rows = Rows();
  for (var i = 0u; i < LIMIT; i++) {
    if (tile.x + i * LANES >= tile.y) { break; }
    let first = min(tile.x + i * LANES + t, tile.y - 1u) * width + at;
    for (var e = 0u; e < LIMIT; e++) { if (e >= p.d4) { break; } rows[i * D4 + e] = dy[first + e]; }
  }
  return rows;
}

/// Rows row … row + 3, or zeros from `end` on; the lane's slices of them.
fn qkvSlice(row: u32, end: u32, width: u32, at: u32, t: u32) -> Slice {
  var part: Slice;
  for (var i = 0u; i < PER; i++) {
    let d = i * LANES + t;
    part[i] = select(vec4f(), qkv[min(row, end - 1u) * width + at + min(d, D4 - 1u)], row < end && d < D4);
  }
  return part;
}
fn qkvSlices(row: u32, end: u32, width: u32, at: u32, t: u32) -> Slices {
  return Slices(qkvSlice(row, end, width, at, t), qkvSlice(row + 1u, end, width, at, t),
    qkvSlice(row + 2u, end, width, at, t), qkvSlice(row + 3u, end, width, at, t));
}
fn dySlice(row: u32, end: u32, width: u32, at: u32, t: u32) -> Slice {
  var part: Slice;
  for (var i = 0u; i < PER; i++) {
    let d = i * LANES + t;
    part[i] = select(vec4f(), dy[min(row, end - 1u) * width + at + min(d, D4 - 1u)], row < end && d < D4);
  }
  return part;
}
fn dySlices(row: u32, end: u32, width: u32, at: u32, t: u32) -> Slices {
  return Slices(dySlice(row, end, width, at, t), dySlice(row + 1u, end, width, at, t),
    dySlice(row + 2u, end, width, at, t), dySlice(row + 3u, end, width, at, t));
}

/// Where the scores of row … row + 3 start: −∞ from `end` on, by its bits, since literals are finite (heads are below 2³¹).
fn start(row: u32, end: u32) -> Round {
  let none = bitcast<f32>(0xff800000u | (p.heads >> 31u));
  return Round(vec4f(select(none, 0.0, row < end)), vec4f(select(none, 0.0, row + 1u < end)),
    vec4f(select(none, 0.0, row + 2u < end)), vec4f(select(none, 0.0, row + 3u < end)));
}
/// Vec4 e of a row · that of each of the lane's rows, added to s.
fn dotVec(s: vec4f, x: vec4f, rows: ptr<function, Rows>, e: u32) -> vec4f {
  let a = (*rows)[e];
  let b = (*rows)[D4 + e];
  let c = (*rows)[2u * D4 + e];
  let d = (*rows)[3u * D4 + e];
  var sum = s + x.x * vec4f(a.x, b.x, c.x, d.x);
  sum += x.y * vec4f(a.y, b.y, c.y, d.y);
  sum += x.z * vec4f(a.z, b.z, c.z, d.z);
  return sum + x.w * vec4f(a.w, b.w, c.w, d.w);
}
/// The row whose slices lie in all lanes · each of the lane's rows. In two loops: sixteen rounds are more than Mesa unrolls.
fn dots(part: Slice, rows: ptr<function, Rows>) -> vec4f {
  var s = vec4f();
  for (var e = 0u; e < min(D4, 8u); e++) { s = dotVec(s, subgroupShuffle(part[e / LANES], e % LANES), rows, e); }
  for (var e = 8u; e < D4; e++) { s = dotVec(s, subgroupShuffle(part[e / LANES], e % LANES), rows, e); }
  return s;
}
fn addDots(s: ptr<function, Round>, part: Slices, rows: ptr<function, Rows>) {
  (*s)[0] += dots(part.a, rows);
  (*s)[1] += dots(part.b, rows);
  (*s)[2] += dots(part.c, rows);
  (*s)[3] += dots(part.d, rows);
}

/// Vec4 e of sums = factor · sums + the weights × the four rows in `part`, for one of the lane's rows, whose sums begin at `first`.
fn addVec(sums: ptr<function, Rows>, first: u32, factor: f32, w: vec4f, part: Slices, e: u32) {
  var x = factor * (*sums)[first + e];
  x += w.x * subgroupShuffle(part.a[e / LANES], e % LANES);
  x += w.y * subgroupShuffle(part.b[e / LANES], e % LANES);
  x += w.z * subgroupShuffle(part.c[e / LANES], e % LANES);
  x += w.w * subgroupShuffle(part.d[e / LANES], e % LANES);
  (*sums)[first + e] = x;
}
fn addRow(sums: ptr<function, Rows>, first: u32, factor: f32, w: vec4f, part: Slices) {
  for (var e = 0u; e < min(D4, 8u); e++) { addVec(sums, first, factor, w, part, e); }
  for (var e = 8u; e < D4; e++) { addVec(sums, first, factor, w, part, e); }
}
fn addWeighted(sums: ptr<function, Rows>, factor: vec4f, w: Round, part: Slices) {
  addRow(sums, 0u, factor.x, vec4f(w[0].x, w[1].x, w[2].x, w[3].x), part);
  addRow(sums, D4, factor.y, vec4f(w[0].y, w[1].y, w[2].y, w[3].y), part);
  addRow(sums, 2u * D4, factor.z, vec4f(w[0].z, w[1].z, w[2].z, w[3].z), part);
  addRow(sums, 3u * D4, factor.w, vec4f(w[0].w, w[1].w, w[2].w, w[3].w), part);
}

/// The lane's rows' numbers in the batch.
fn numbers(tile: vec4u, t: u32) -> vec4u {
  return min(vec4u(tile.x + t) + LANES * vec4u(0u, 1u, 2u, 3u), vec4u(tile.y - 1u));
}
/// s[j] *= M for the lane's query rows n and the keys 4·block + j.
fn multiplyMask(s: ptr<function, Round>, n: vec4u, h: u32, block: u32) {
  let a = maskWords(n.x, h, block);
  let b = maskWords(n.y, h, block);
  let c = maskWords(n.z, h, block);
  let d = maskWords(n.w, h, block);
  for (var j = 0u; j < 4u; j++) { (*s)[j] *= vec4f(maskFrom(a, j), maskFrom(b, j), maskFrom(c, j), maskFrom(d, j)); }
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let n = numbers(tile, t);
  var q = own(tile, 3u * c4, at, t, LOG2E * p.scale);
  var sums: Rows;
  var m = vec4f(LOWEST);
  var l = vec4f();
  var spoilt = vec4f();  // NaN from the first score on that is NaN or +∞: exp2 would make a number of it
  for (var b = 0u; b < LIMIT; b++) {
    let key = tile.z + 4u * b;
    if (key >= tile.w) { break; }
    let k = qkvSlices(key, tile.w, 3u * c4, c4 + at, t);
    let v = qkvSlices(key, tile.w, 3u * c4, 2u * c4 + at, t);
    var s = start(key, tile.w);
    addDots(&s, k, &q);
    let next = max(max(m, max(s[0], s[1])), max(s[2], s[3]));
    let shrink = exp2(m - next);  // what is summed so far was relative to the old maximum
    m = next;
    spoilt += ((s[0] - m) + (s[1] - m)) + ((s[2] - m) + (s[3] - m));
    s = Round(exp2(s[0] - m), exp2(s[1] - m), exp2(s[2] - m), exp2(s[3] - m));
    l = l * shrink + ((s[0] + s[1]) + (s[2] + s[3]));
    if (dropout) { multiplyMask(&s, n, h, b); }
    addWeighted(&sums, shrink, s, v);
  }
  for (var i = 0u; i < LIMIT; i++) {
    if (tile.x + i * LANES >= tile.y) { break; }
    let row = tile.x + i * LANES + t;
    let total = select(l[i], spoilt[i], isNan(spoilt[i]));
    if (row < tile.y) {
      for (var e = 0u; e < LIMIT; e++) { if (e >= p.d4) { break; } y[row * c4 + at + e] = sums[i * D4 + e] / total; }
      lse[row * p.heads + h] = LN2 * m[i] + logSum(total);
    }
  }
}

// The derivation stands in attention.wgsl. Here one kernel makes all three gradients, so that scores and dP are made again
// once, not twice: a workgroup takes a whole sequence (that of its first tile; the others' are empty), a tile of keys at a time.
// dk and dv are sums of a lane's own rows. dq crosses lanes: each adds up ds · k over its four keys, and spread leaves the sum
// over lanes of a query row's t-th vec4 in lane t, which adds it to what the tiles before have left in dqkv.
// lse is NaN where a score was, or was +∞, and so is delta (NaN in y): exp2, which may make a number of NaN, needs care only
// for dv.

@group(0) @binding(2) var<storage, read> output: array<vec4f>;           // [N, C], the forward's y
@group(0) @binding(3) var<storage, read> kept: array<f32>;               // [N, H], the forward's lse
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4f>;       // [N, 3C]

/// dy·y of a row, in all lanes.
fn deltaOf(g: Slice, row: u32, end: u32, at: u32, t: u32) -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < PER; i++) {
    let d = i * LANES + t;
    sum += dot(g[i], select(vec4f(), output[min(row, end - 1u) * p.heads * D4 + at + min(d, D4 - 1u)], row < end && d < D4));
  }
  sum += subgroupShuffle(sum, t ^ 1u);
  sum += subgroupShuffle(sum, t ^ 2u);
  if (LANES == 8u) { sum += subgroupShuffle(sum, t ^ 4u); }
  return sum;
}

/// Of a and b, the sum over two lanes that differ in `bit`: of a in the lower one, of b in the upper one.
fn fold(a: vec4f, b: vec4f, t: u32, bit: u32) -> vec4f {
  let upper = (t & bit) != 0u;
  return select(a, b, upper) + subgroupShuffle(select(b, a, upper), t ^ bit);
}
/// Σ over the lane's rows of weight · row, vec4 e; 0 beyond the head.
fn weighted(w: vec4f, rows: ptr<function, Rows>, e: u32) -> vec4f {
  if (e >= D4) { return vec4f(); }
  let a = (*rows)[min(e, D4 - 1u)];
  let b = (*rows)[D4 + min(e, D4 - 1u)];
  let c = (*rows)[2u * D4 + min(e, D4 - 1u)];
  let d = (*rows)[3u * D4 + min(e, D4 - 1u)];
  return (w.x * a + w.y * b) + (w.z * c + w.w * d);
}
/// Σ over all lanes' rows of weight · row: the lane's slice of it.
fn spread(w: vec4f, rows: ptr<function, Rows>, t: u32) -> Slice {
  var part: Slice;
  for (var i = 0u; i < PER; i++) {
    let e = i * LANES;
    var x0 = weighted(w, rows, e);
    var x1 = weighted(w, rows, e + 1u);
    var x2 = weighted(w, rows, e + 2u);
    var x3 = weighted(w, rows, e + 3u);
    if (LANES == 8u) {
      x0 = fold(x0, weighted(w, rows, e + 4u), t, 4u);
      x1 = fold(x1, weighted(w, rows, e + 5u), t, 4u);
      x2 = fold(x2, weighted(w, rows, e + 6u), t, 4u);
      x3 = fold(x3, weighted(w, rows, e + 7u), t, 4u);
    }
    part[i] = fold(fold(x0, x2, t, 2u), fold(x1, x3, t, 2u), t, 1u);
  }
  return part;
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  var tile = tiles[pair / p.heads];
  if (tile.x != tile.z) { return; }
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  for (var i = 0u; i < LIMIT; i++) {
    tile.x = tile.z + i * 4u * LANES;
    if (tile.x >= tile.w) { break; }
    tile.y = min(tile.x + 4u * LANES, tile.w);
    keyTile(tile, h, c4, at, t);
  }
}

/// dk and dv of the rows of a tile, and what they give to the sequence's dq.
fn keyTile(tile: vec4u, h: u32, c4: u32, at: u32, t: u32) {
  var k = own(tile, 3u * c4, c4 + at, t, LOG2E * p.scale);
  var v = own(tile, 3u * c4, 2u * c4 + at, t, 1.0);
  // What a lane beyond the end repeats must not be counted again in dq.
  let exists = vec4u(tile.x + t) + LANES * vec4u(0u, 1u, 2u, 3u) < vec4u(tile.y);
  var dk = Rows();
  var dv = Rows();
  for (var b = 0u; b < LIMIT; b++) {
    let row = tile.z + 4u * b;
    if (row >= tile.w) { break; }
    let q = qkvSlices(row, tile.w, 3u * c4, at, t);
    var g = dySlices(row, tile.w, c4, at, t);
    let delta = vec4f(deltaOf(g.a, row, tile.w, at, t), deltaOf(g.b, row + 1u, tile.w, at, t),
      deltaOf(g.c, row + 2u, tile.w, at, t), deltaOf(g.d, row + 3u, tile.w, at, t));
    // Lane j has lse of query row + j.
    let log = select(0.0, kept[min(row + t, tile.w - 1u) * p.heads + h], row + t < tile.w);
    let spoilt = select(0.0, log, isNan(log));
    for (var i = 0u; i < PER; i++) {
      g.a[i] += subgroupShuffle(spoilt, 0u);
      g.b[i] += subgroupShuffle(spoilt, 1u);
      g.c[i] += subgroupShuffle(spoilt, 2u);
      g.d[i] += subgroupShuffle(spoilt, 3u);
    }
    var s = start(row, tile.w);
    addDots(&s, q, &k);
    var ds = Round();
    addDots(&ds, g, &v);
    for (var j = 0u; j < 4u; j++) {
      let w = exp2(s[j] - subgroupShuffle(LOG2E * log, j));
      var keep = vec4f(1.0);
      if (dropout) {
        // A tile begins at a multiple of 4·LANES in its sequence, so its keys lie in LANES blocks of the mask, one a lane.
        let words = maskWords(row + j, h, (tile.x - tile.z) / 4u + t);
        let lanes = vec4u(t / 4u) + (LANES / 4u) * vec4u(0u, 1u, 2u, 3u);
        keep = vec4f(maskFrom(subgroupShuffle(words, lanes.x), t), maskFrom(subgroupShuffle(words, lanes.y), t),
          maskFrom(subgroupShuffle(words, lanes.z), t), maskFrom(subgroupShuffle(words, lanes.w), t));
      }
      ds[j] = select(vec4f(), w * (ds[j] * keep - delta[j]), exists);
      s[j] = w * keep;
    }
    addWeighted(&dk, vec4f(1.0), ds, q);
    addWeighted(&dv, vec4f(1.0), s, g);
    let dq = Slices(spread(ds[0], &k, t), spread(ds[1], &k, t), spread(ds[2], &k, t), spread(ds[3], &k, t));
    for (var j = 0u; j < LIMIT; j++) {
      if (j >= min(tile.w - row, 4u)) { break; }
      for (var i = 0u; i < PER; i++) {
        let d = i * LANES + t;
        let goal = (row + j) * 3u * c4 + at + d;
        var x = LN2 * select(select(dq.a[i], dq.b[i], j == 1u), select(dq.c[i], dq.d[i], j == 3u), j >= 2u);
        if (d < D4) {
          if (tile.x > tile.z) { x += dqkv[goal]; }
          dqkv[goal] = x;
        }
      }
    }
  }
  for (var i = 0u; i < LIMIT; i++) {
    if (tile.x + i * LANES >= tile.y) { break; }
    let n = tile.x + i * LANES + t;
    if (n < tile.y) {
      let goal = n * 3u * c4 + c4 + at;
      for (var e = 0u; e < LIMIT; e++) {
        if (e >= p.d4) { break; }
        dqkv[goal + e] = dk[i * D4 + e] * p.scale;
        dqkv[goal + c4 + e] = dv[i * D4 + e];
      }
    }
  }
}
