package fs

import (
	"maps"
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

// Describe implements virtio.Describing: the tag, and what the file system says of
// itself, if it does.
func (d *Device) Describe() map[string]any {
	m := map[string]any{"tag": d.opts.Tag, "queues": d.opts.Queues}
	if f, ok := d.session.fsys.(virtio.Describing); ok {
		maps.Copy(m, f.Describe())
	}
	return m
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
