package fs

import (
	"bytes"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vole-vmm/vole/virtio"
)

// logger passes one line a second on, and says how many it held back. It is also
// what the library writes to.
type logger struct {
	to      *slog.Logger // nil is silent
	tag     string
	start   time.Time // muffled's clock
	muffled virtio.Muffle
}

// pass reports whether a line may be written now, and how many were not.
func (l *logger) pass() (held uint64, ok bool) {
	if l.to == nil {
		return 0, false
	}
	return l.muffled.Pass(time.Since(l.start))
}

// Write takes a line of the library's.
func (l *logger) Write(p []byte) (int, error) {
	if held, ok := l.pass(); ok {
		l.to.Warn("virtiofs", "tag", l.tag, "reason", string(bytes.TrimSpace(p)), "unreported", held)
	}
	return len(p), nil
}

// panicked takes what the file system or the library has panicked of: a fault of
// theirs, which costs one request.
func (d *Device) panicked(p any) fuse.Status {
	d.stats.panics.Add(1)
	if held, ok := d.log.pass(); ok {
		d.log.to.Error("virtiofs: a request failed", "tag", d.opts.Tag, "panic", p, "stack", string(debug.Stack()), "unreported", held)
	}
	return fuse.EIO
}
