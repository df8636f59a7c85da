package fs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// MaxTag is the longest tag, in bytes (VIRTIO 1.2, 5.11.4).
	MaxTag = 36
	// MaxData is the most that a READ or WRITE carries, in bytes.
	MaxData = 1 << 20
	// DefaultWorkers is how many requests of a queue are worked on at a time.
	DefaultWorkers = 8
	// MaxWorkers is the most workers that a device has, over all queues. Each may
	// be a thread in a system call, and a Go program that needs more than 10000
	// threads is ended.
	MaxWorkers = 64
	// MaxQueues is the most request queues that a device has.
	MaxQueues = 16
	// MaxBlocked is how many requests of a device can wait for a lock. One more
	// fails with ENOLCK.
	MaxBlocked = 64
	// MaxSyncs is how many SYNCFS of a device are waited for apart from its workers.
	// One more takes a worker.
	MaxSyncs = 64
)

const (
	queueHiprio = 0

	// queueSize leaves room for the pages of MaxData in one request: Linux asks for
	// as many as the ring holds less four. It is less than the 1024 buffers that a
	// pwritev or preadv takes.
	queueSize       = 512
	hiprioQueueSize = 128

	// background is how many requests Linux has under way of those that nobody
	// waits for, above all readahead.
	background = 64
)

// ErrConfig is what errors of New about bad arguments wrap.
var ErrConfig = errors.New("virtiofs")

// FileSystem is what a device serves: FUSE's requests as the fuse package decodes
// them, from several goroutines. INIT and DESTROY, and what asks for no reply but
// FORGET, do not reach it; nor do its methods Init and OnUnmount get called.
//
// Write and Writev may get slices of guest memory, which change at any time: they
// are for a system call, or copied once. The buffer of Read may be guest memory:
// it is only written to. Everything else belongs to the call and is a copy. Names
// are as the guest wrote them: empty, "..", or with a "/".
type FileSystem interface {
	fuse.RawFileSystem
	// Reset is the end of the guest's session: all inodes and handles are
	// forgotten and their descriptors closed. No request is in flight.
	Reset()
	// Close is Reset for good.
	io.Closer
}

// Options are what a device has besides its file system.
type Options struct {
	// Tag is what the guest mounts it by: 1 to MaxTag bytes of printable UTF-8.
	Tag string
	// Queues is the number of request queues, at best one for each vCPU; 0 is 1, and
	// more than MaxQueues are MaxQueues. Old kernels use only the first.
	Queues int
	// Workers is how many requests of a queue are worked on at a time; 0 is
	// DefaultWorkers. All queues together have not more than MaxWorkers.
	Workers int
	// Logger receives what goes wrong on the host, at most one line a second; nil
	// is silent.
	Logger *slog.Logger
}

// Negotiating is implemented by a FileSystem that has a say in what INIT
// negotiates: that it keeps locks, caches, has extended attributes or none. Of the
// options those about the mount, sizes, and logging are the device's, and
// capabilities that nothing here can live up to are left out.
type Negotiating interface {
	MountOptions() *fuse.MountOptions
}

// Syncing is implemented by a FileSystem that can bring what was written to stable
// storage. Without it the guest's kernel takes sync(2) to be done at once.
type Syncing interface {
	// SyncFS does that with all that was written before. It may take as long as the disks
	// do, and is called by any number of goroutines at a time. When cancel is closed
	// the session ends, and so does the wait, with EINTR.
	SyncFS(cancel <-chan struct{}) fuse.Status
}

// config is the device's configuration space (5.11.4).
type config struct {
	Tag              [MaxTag]byte
	NumRequestQueues uint32
}

// Device is a virtio file system device.
type Device struct {
	*virtio.ConfigSpace
	opts    Options
	session session
	blocked chan struct{} // has an element for each request that may wait for a lock
	syncs   chan struct{} // and for each that waits for the disks
	cached  atomic.Bool   // nobody has to wait for the disks any more
	spare   sync.Pool     // of requests that did either
	buffers buffers
	stats   counters
	log     logger
	work    sync.WaitGroup
}

var (
	_ virtio.Device     = (*Device)(nil)
	_ virtio.Counting   = (*Device)(nil)
	_ virtio.Describing = (*Device)(nil)
	_ io.Closer         = (*Device)(nil)
)

// LeaveToHost has each SYNCFS from now on answered at once: what the guest writes stays in
// the host's page cache, as what a program has written before it ends, and comes to the
// disks when the host writes it. It is for the last sync of a guest that is being ended. It
// may be called from any goroutine.
func (d *Device) LeaveToHost() { d.cached.Store(true) }

// State is the device's registers.
type State struct {
	// Session says that the guest has begun a FUSE session.
	Session bool
}

// CheckTag says what is wrong with a tag.
func CheckTag(tag string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case tag == "":
		return errors.New("the tag is empty")
	case len(tag) > MaxTag:
		return fmt.Errorf("the tag %q has %d bytes: at most %d have room", tag, len(tag), MaxTag)
	case !utf8.ValidString(tag) || strings.ContainsFunc(tag, bad):
		return fmt.Errorf("the tag %q has bytes that can't be printed", tag)
	}
	return nil
}

// New makes a device of fsys, which then belongs to it: Close closes it, and so does
// New when it fails. Errors wrap ErrConfig.
func New(fsys FileSystem, o Options) (*Device, error) {
	d, err := newDevice(fsys, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrConfig, err), fsys.Close())
	}
	return d, nil
}

func newDevice(fsys FileSystem, o Options) (*Device, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	o.Queues = min(o.Queues, MaxQueues)
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if err := CheckTag(o.Tag); err != nil {
		return nil, err
	}
	switch {
	case o.Queues < 1:
		return nil, fmt.Errorf("%s: %d queues: 1 to %d are possible", o.Tag, o.Queues, MaxQueues)
	case o.Workers < 1 || o.Workers > MaxWorkers:
		return nil, fmt.Errorf("%s: %d workers: 1 to %d are possible", o.Tag, o.Workers, MaxWorkers)
	}
	c := config{NumRequestQueues: uint32(o.Queues)}
	copy(c.Tag[:], o.Tag)
	space, err := virtio.NewConfigSpace(c)
	if err != nil {
		return nil, err
	}
	d := &Device{ConfigSpace: space, opts: o, blocked: make(chan struct{}, MaxBlocked), syncs: make(chan struct{}, MaxSyncs)}
	d.log = logger{to: o.Logger, tag: o.Tag, start: time.Now()}
	d.session = session{fsys: fsys, options: d.mountOptions(fsys)}
	return d, nil
}

// Type implements virtio.Device.
func (*Device) Type() virtio.Type { return virtio.TypeFS }

// Features implements virtio.Device: there are none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	sizes := []uint16{hiprioQueueSize}
	for range d.opts.Queues {
		sizes = append(sizes, queueSize)
	}
	return sizes
}

// State implements virtio.Device.
func (d *Device) State() any { return State{Session: d.session.isOpen()} }

// Tag is what the guest mounts the device by.
func (d *Device) Tag() string { return d.opts.Tag }

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	for i, q := range a.Queues {
		switch {
		case q == nil:
		case i == queueHiprio:
			r := newRequest(d, q)
			d.work.Go(r.hiprio)
		default:
			c := &virtio.Crew{}
			for range max(1, min(d.opts.Workers, MaxWorkers/d.opts.Queues)) {
				w := &worker{d: d, q: q, crew: c, call: make(chan struct{}, 1), r: newRequest(d, q)}
				d.work.Go(w.run)
			}
		}
	}
	return nil
}

// Reset implements virtio.Device: the session ends.
func (d *Device) Reset() {
	d.session.halt()
	d.work.Wait()
	d.session.end()
	d.session.resume()
}

// Close closes the file system. The machine has closed the device's Function
// before.
func (d *Device) Close() error { return d.session.fsys.Close() }
