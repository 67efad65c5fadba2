// Mixout (Lee, Cho, Kang, "Mixout: effective regularization to finetune large-scale pretrained language models", 2020): a
// step is taken at weights of which each is swapped for its pretrained value with probability p,
//   θ' = μ + m/(1 − p) ⊙ (θ − μ),  m = 0 with probability p, else 1,  so that E θ' = θ,
// and ∇θ = m/(1 − p) ⊙ ∇θ'. Where the loss is quadratic, E L(θ') = L(θ) + p/(2(1 − p)) Σ Hᵢᵢ Δᵢ²: a Gaussian prior around μ
// whose precision is the likelihood's own curvature. The mask is a function of (key, element of θ): the 16-bit lanes of
// threefry(key, (q, 0)) for the vec4 with number q, below `threshold` where a weight stays, as in dropout.wgsl.
// A thread owns PER vec4 that lie a workgroup apart.

struct P { count: u32, quad: u32, threshold: u32, scale: f32, key: vec2u }
var<immediate> p: P;

const PER = 16u;

@group(0) @binding(0) var<storage, read_write> theta: array<vec4f>;  // [count / 4], rounded up
@group(0) @binding(1) var<storage, read> mu: array<vec4f>;           // [count / 4], rounded up

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

/// m/(1 − p) of the vec4 with number q.
fn kept(q: u32) -> vec4f {
  let bits = threefry2x32(p.key, vec2u(q, 0u));
  let lanes = vec4u(bits.x & 0xffffu, bits.x >> 16u, bits.y & 0xffffu, bits.y >> 16u);
  return select(vec4f(), vec4f(p.scale), lanes < vec4u(p.threshold));
}

@compute @workgroup_size(64)
fn mix(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= (p.count + 3u) / 4u) { break; }
    // Where θ = μ this is μ to the last bit: what rests goes on resting.
    theta[at] = mu[at] + kept(p.quad + at) * (theta[at] - mu[at]);
  }
}

@group(0) @binding(0) var<storage, read_write> grad: array<vec4f>;   // [count / 4], rounded up

// In the forward pass θ' = μ + m/(1 − p) ⊙ (θ − μ), linear in θ, so the backward multiplies by the same m/(1 − p).
@compute @workgroup_size(64)
fn mask(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= (p.count + 3u) / 4u) { break; }
    grad[at] *= kept(p.quad + at);
  }
}
