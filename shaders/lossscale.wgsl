// Loss scaling (Micikevicius et al., "Mixed precision training", 2018). The backward begins with S in place of 1, so that
// small gradients are not lost in f16, and what it leaves is S times the gradient of the loss. S is a power of two: the
// gradient divided by it has the bits that it would have had, as far as nothing over- or underflowed on the way.
// S lives here and not on the host, so that a step that overflowed is skipped and the next one already has half the S.

struct P {
  count: u32,     // unscale: floats in the window, a multiple of 4; settle: losses
  skip: u32,      // unscale: floats at the window's start that belong to the stretch before
  block: u32,     // unscale: the window's first block
  step: u32,      // settle: the step, counted from 1
  interval: u32,  // settle: good steps in a row after which S is doubled
  least: f32,     // settle: the least S, and the largest
  largest: f32,
}
var<immediate> p: P;

const PER = 32u;
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const INFINITY = 0x7f800000u;  // the exponent's bits: all set in an infinity or a NaN
const OVER = 2u;  // in status[0]: it is no matter of S, and nothing changes any more

// [16]: 0 the bits of S; 1 good steps since S changed; 2 steps that were skipped; 3 the last of them
@group(0) @binding(0) var<storage, read> state: array<u32>;          // [16]
@group(0) @binding(1) var<storage, read> live: array<u32>;           // [blocks], a bit a chunk of 64 vec4
@group(0) @binding(2) var<storage, read_write> grad: array<vec4f>;   // [count / 4]

// g ← g / S, of what is live (live.ts): the rest is 0. Threads as in update.wgsl.
@compute @workgroup_size(64)
fn unscale(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  // 1/S by its exponent: WGSL's division may be off by a bit.
  let inverse = bitcast<f32>((254u << 23u) - state[0]);
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= p.count / 4u) { continue; }
    grad[at] *= inverse;
  }
}

@group(0) @binding(0) var<storage, read_write> scale: array<u32>;    // [16], as above
@group(0) @binding(1) var<storage, read_write> status: array<u32>;   // [16], as in terms.wgsl
@group(0) @binding(2) var<storage, read> losses: array<f32>;         // [count]

fn finite(x: f32) -> bool { return (bitcast<u32>(x) & INFINITY) != INFINITY; }

// After the updates, which did nothing where the gradient was not finite. Where half the S may mend that, the verdict is
// taken back and the step counts as taken; a loss that is not finite no S can mend.
@compute @workgroup_size(1)
fn settle() {
  if ((status[0] & OVER) != 0u) { return; }
  let s = bitcast<f32>(scale[0]);
  if (status[0] == 0u) {
    scale[1]++;
    if (scale[1] >= p.interval) {
      scale[1] = 0u;
      scale[0] = bitcast<u32>(min(2.0 * s, p.largest));
    }
    return;
  }
  var good = true;
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.count) { break; }
    good = good && finite(losses[i]);
  }
  if (!good || s <= p.least) {
    status[0] |= OVER;
    return;
  }
  scale[0] = bitcast<u32>(max(0.5 * s, p.least));
  scale[1] = 0u;
  scale[2]++;
  scale[3] = p.step;
  status[0] = 0u;
  status[2] = p.step;
}
