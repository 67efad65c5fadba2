// Dropout (Srivastava et al. 2014): y = x ⊙ mask / keep. The mask is no array but a function of (key, element), so the
// backward is the same pass over dy and nothing is stored. Random bits: Threefry-2x32-20 (Salmon et al., SC 2011).
// One call gives 64 bits; the vec4 with index q takes the four 16-bit lanes of threefry(key, (q, 0)):
//   element 4q: low half of the first word, 4q + 1: its high half, 4q + 2 and 4q + 3: the second word likewise.
// An element is kept where its lane is below `threshold`, so the keep probability is exactly threshold / 65536, and it
// is that number, not 1 − p, whose inverse scales the result: E y = x exactly.
// A thread owns up to `per` vec4 and the threads of a workgroup lie side by side.

struct P { size: u32, per: u32, threshold: u32, scale: f32, key: vec2u }
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loop finite

/// A thread's first vec4, and how many it has; they are 64 apart.
fn share(w: u32, t: u32) -> vec2u {
  let quads = (p.size + 3u) / 4u;
  let begin = w * 64u * p.per + t;
  if (begin >= quads) { return vec2u(); }
  return vec2u(begin, min(p.per, (quads - begin + 63u) / 64u));
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;        // [size / 4], rounded up
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;  // [size / 4], rounded up

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

@compute @workgroup_size(64)
fn dropout(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let q = mine.x + i * 64u;
    let bits = threefry2x32(p.key, vec2u(q, 0u));
    let lanes = vec4u(bits.x & 0xffffu, bits.x >> 16u, bits.y & 0xffffu, bits.y >> 16u);
    // Multiplied, not chosen: a NaN or an infinity in a dropped place stays visible, as x·mask says.
    y[q] = x[q] * select(vec4f(), vec4f(p.scale), lanes < vec4u(p.threshold));
  }
}

// For the test of the generator itself, against the known answers.
@group(0) @binding(0) var<storage, read> inputs: array<vec4u>;        // [n] (key, counter)
@group(0) @binding(1) var<storage, read_write> words: array<vec2u>;   // [n]

@compute @workgroup_size(64)
fn generate(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < p.size) { words[id.x] = threefry2x32(inputs[id.x].xy, inputs[id.x].zw); }
}
