// Attention over packed sequences (Vaswani et al., "Attention is all you need", 2017), the softmax taken while passing over
// the keys (Milakov & Gimelshein 2018; Dao et al., "FlashAttention", 2022): for query row n and head h,
//   s_j = scale · q_n·k_j over the keys j of n's own sequence, P_j = exp(s_j − lse), y_n = Σ_j M_j P_j v_j, lse = log Σ_j exp(s_j),
// where M is dropout's mask over the probabilities, 0 or 1/keep (absent without dropout). No T × T array is ever stored.
// The host lists tiles of up to eight rows of one sequence; eight neighbouring threads take one (tile, head), a row each,
// so that they read the same keys at the same time. A thread keeps its row in registers: no workgroup memory, no barrier.
// The backward needs qkv, y, lse and dy.
// The mask is a function of (key, query row n in the batch, head, key position j), as in dropout.wgsl: of
// threefry(key, (n, head·65536 + ⌊j/4⌋)) the 16-bit lane j mod 4, kept where it is below `threshold`.
// GPUs take attention_tiled.wgsl, software adapters attention_subgroup.wgsl or attention_unrolled.wgsl where they can
// (familyOf in attention.ts).
// NaN is told by its bits: compilers may assume that there is none, and exp(NaN) is +∞ on SwiftShader.

struct P { pairs: u32, heads: u32, scale: f32, threshold: u32, keepScale: f32, d4: u32, key: vec2u }  // pairs = tiles · heads
var<immediate> p: P;

override dropout: bool = false;
override unrolled: bool = false;  // D4 as the bound of loops: SwiftShader is faster so, lavapipe compiles for a minute
override THREADS = 64u;     // a multiple of 8; few where cores are few and the last workgroup counts

// --- tile
const D4 = 4u;              // vec4s of a head: D / 4
// --- end
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;  // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞

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

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let pair = (wid.x + wid.y * groups.x) * (THREADS / 8u) + t / 8u;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let n = tile.x + t % 8u;
  if (n >= tile.y) { return; }
  let c4 = p.heads * D4;
  let d4 = select(p.d4, D4, unrolled);
  let at = h * D4;
  var q: array<vec4f, D4>;
  var sum: array<vec4f, D4>;
  for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } q[d] = qkv[n * 3u * c4 + at + d] * p.scale; sum[d] = vec4f(); }
  var m = LOWEST;
  var l = 0.0;
  var words = vec2u();
  for (var j = 0u; j < LIMIT; j++) {
    if (j >= tile.w - tile.z) { break; }
    let k = (tile.z + j) * 3u * c4 + c4 + at;
    var s4 = vec4f();
    for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } s4 += q[d] * qkv[k + d]; }
    let s = (s4.x + s4.y) + (s4.z + s4.w);
    let next = max(m, s);
    let shrink = exp(m - next);  // what is summed so far was relative to the old maximum
    var w = expNan(s - next);
    l = l * shrink + w;
    m = next;
    if (dropout) {
      if ((j & 3u) == 0u) { words = maskWords(n, h, j / 4u); }
      w *= maskFrom(words, j);
    }
    for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } sum[d] = sum[d] * shrink + w * qkv[k + c4 + d]; }
  }
  for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } y[n * c4 + at + d] = sum[d] / l; }
  lse[n * p.heads + h] = m + logSum(l);
}

// In the forward pass this was y_n = Σ_j M_j P_j v_j with P = softmax(s), s_j = scale · q_n·k_j. Then
//   dP_j = M_j (dy_n·v_j),   ds_j = P_j (dP_j − Σ_i P_i dP_i) = P_j (M_j (dy_n·v_j) − delta),   delta = Σ_i P_i M_i (dy_n·v_i) = dy_n·y_n,
//   dq_n = scale · Σ_j ds_j k_j    (a thread a query row: `backwardQuery`, which leaves delta),
//   dk_j = scale · Σ_n ds_nj q_n,  dv_j = Σ_n M_nj P_nj dy_n    (a thread a key row: `backwardKey`).
// P is made again from lse, so two passes need no atomics and sum in a fixed order.

@group(0) @binding(2) var<storage, read> output: array<vec4f>;           // [N, C], the forward's y
@group(0) @binding(3) var<storage, read> kept: array<f32>;               // [N, H], the forward's lse
@group(0) @binding(4) var<storage, read> dy: array<vec4f>;               // [N, C]
@group(0) @binding(5) var<storage, read_write> deltaOut: array<f32>;     // [N, H]
@group(0) @binding(6) var<storage, read_write> dqkv: array<vec4f>;       // [N, 3C]

@compute @workgroup_size(THREADS)
fn backwardQuery(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let pair = (wid.x + wid.y * groups.x) * (THREADS / 8u) + t / 8u;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let n = tile.x + t % 8u;
  if (n >= tile.y) { return; }
  let c4 = p.heads * D4;
  let d4 = select(p.d4, D4, unrolled);
  let at = h * D4;
  var q: array<vec4f, D4>;
  var g: array<vec4f, D4>;
  var dq: array<vec4f, D4>;
  var delta = 0.0;
  for (var d = 0u; d < LIMIT; d++) {
    if (d >= d4) { break; }
    q[d] = qkv[n * 3u * c4 + at + d] * p.scale;
    g[d] = dy[n * c4 + at + d];
    delta += dot(g[d], output[n * c4 + at + d]);
    dq[d] = vec4f();
  }
  let logTotal = kept[n * p.heads + h];
  var words = vec2u();
  for (var j = 0u; j < LIMIT; j++) {
    if (j >= tile.w - tile.z) { break; }
    let k = (tile.z + j) * 3u * c4 + c4 + at;
    var s4 = vec4f();
    var dp4 = vec4f();
    for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } s4 += q[d] * qkv[k + d]; dp4 += g[d] * qkv[k + c4 + d]; }
    var dp = (dp4.x + dp4.y) + (dp4.z + dp4.w);
    if (dropout) {
      if ((j & 3u) == 0u) { words = maskWords(n, h, j / 4u); }
      dp *= maskFrom(words, j);
    }
    let ds = expNan((s4.x + s4.y) + (s4.z + s4.w) - logTotal) * (dp - delta);
    for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } dq[d] += ds * qkv[k + d]; }
  }
  for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } dqkv[n * 3u * c4 + at + d] = dq[d] * p.scale; }
  deltaOut[n * p.heads + h] = delta;
}

@group(0) @binding(2) var<storage, read> deltaIn: array<f32>;            // [N, H]
@group(0) @binding(5) var<storage, read_write> dkv: array<vec4f>;        // [N, 3C]

@compute @workgroup_size(THREADS)
fn backwardKey(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let pair = (wid.x + wid.y * groups.x) * (THREADS / 8u) + t / 8u;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let row = tile.x + t % 8u;
  if (row >= tile.y) { return; }
  let c4 = p.heads * D4;
  let d4 = select(p.d4, D4, unrolled);
  let at = h * D4;
  let mine = row * 3u * c4 + c4 + at;
  var k: array<vec4f, D4>;
  var v: array<vec4f, D4>;
  var dk: array<vec4f, D4>;
  var dv: array<vec4f, D4>;
  for (var d = 0u; d < LIMIT; d++) {
    if (d >= d4) { break; }
    k[d] = qkv[mine + d] * p.scale;
    v[d] = qkv[mine + c4 + d];
    dk[d] = vec4f();
    dv[d] = vec4f();
  }
  for (var i = 0u; i < LIMIT; i++) {
    let n = tile.z + i;
    if (n >= tile.w) { break; }
    let q = n * 3u * c4 + at;
    let g = n * c4 + at;
    var s4 = vec4f();
    var dp4 = vec4f();
    for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } s4 += k[d] * qkv[q + d]; dp4 += v[d] * dy[g + d]; }
    let w = expNan((s4.x + s4.y) + (s4.z + s4.w) - kept[n * p.heads + h]);
    var dp = (dp4.x + dp4.y) + (dp4.z + dp4.w);
    var dropped = w;
    if (dropout) {
      let keep = maskFrom(maskWords(n, h, (row - tile.z) / 4u), row - tile.z);
      dp *= keep;
      dropped *= keep;
    }
    let ds = w * (dp - deltaIn[n * p.heads + h]);
    for (var d = 0u; d < LIMIT; d++) { if (d >= d4) { break; } dk[d] += ds * qkv[q + d]; dv[d] += dropped * dy[g + d]; }
  }
  for (var d = 0u; d < LIMIT; d++) {
    if (d >= d4) { break; }
    dkv[mine + d] = dk[d] * p.scale;
    dkv[mine + c4 + d] = dv[d];
  }
}
