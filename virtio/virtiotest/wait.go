package virtiotest

import "bytes"

// Until waits for a condition that the device's goroutines bring about; what
// says it in words.
func (d *Driver) Until(what string, f func() bool) {
	d.tb.Helper()
	d.until(what, f)
}

// Snapshot is a copy of the guest's RAM.
func (d *Driver) Snapshot() []byte { return bytes.Clone(d.ram) }
