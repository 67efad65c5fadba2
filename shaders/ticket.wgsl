// The last dispatch of every submit: leaves the submit's number where the host can see it.
// Dawn drops a whole command buffer for one bad command and says so elsewhere, so a value that is read back is believed
// only when this number says that its submit ran.

struct P { submit: u32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read_write> ticket: array<u32>;  // [1]

@compute @workgroup_size(1)
fn write() { ticket[0] = p.submit; }
