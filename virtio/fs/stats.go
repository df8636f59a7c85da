package fs

import (
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

// counters are what Counters reads.
type counters struct {
	requests           [opcodes]atomic.Uint64 // [0] has the unknown ones
	read, written      atomic.Uint64          // bytes of data
	errors             atomic.Uint64          // replies with an error
	malformed          atomic.Uint64          // requests that no file system can have been meant to see
	panics, outOfLocks atomic.Uint64
}

// Counters implements virtio.Counting: the data, what went wrong, and the requests
// of each kind of which there was one.
func (d *Device) Counters() []virtio.Counter {
	s := &d.stats
	list := []virtio.Counter{
		{Name: "bytes read", Value: s.read.Load()},
		{Name: "bytes written", Value: s.written.Load()},
		{Name: "errors", Value: s.errors.Load()},
		{Name: "malformed", Value: s.malformed.Load()},
		{Name: "panics", Value: s.panics.Load()},
		{Name: "out of locks", Value: s.outOfLocks.Load()},
		{Name: "unknown", Value: s.requests[0].Load()},
	}
	for op := range kinds {
		if n := s.requests[op].Load(); n > 0 && op > 0 {
			list = append(list, virtio.Counter{Name: kinds[op].name, Value: n})
		}
	}
	return list
}
