package net

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// fakeKernel is a /dev/vhost-net that uses what the driver sends, and gives it frames
// of zeroes when it is told to. What the kernel would refuse it refuses.
type fakeKernel struct {
	pair  int
	offer uint64
	fail  map[string]error // by the request

	mu     sync.Mutex
	log    []string
	rings  [2]fakeRing
	closed int
	sent   int // frames
	last   int // frames that come at the end of the receiving ring
}

type fakeRing struct {
	avail, used     []byte
	size            uint16
	kick, call, err int
	next            uint16
	backend         int
	stop            int // an eventfd
	served          sync.WaitGroup
}

func newFakeKernel(pair int) *fakeKernel {
	k := &fakeKernel{pair: pair, offer: 1<<27 | vhostFeatures, fail: map[string]error{}}
	for i := range k.rings {
		k.rings[i] = fakeRing{kick: -1, call: -1, err: -1, backend: -1}
	}
	return k
}

// did notes a request and returns the error that it is to have.
func (k *fakeKernel) did(request string, args ...any) error {
	k.log = append(k.log, fmt.Sprint(append([]any{request}, args...)...))
	if k.closed > 0 {
		return unix.EBADF
	}
	return k.fail[request]
}

func (k *fakeKernel) on(request string, ring int, f func(r *fakeRing) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.did(request, " ", ring); err != nil {
		return err
	}
	return f(&k.rings[ring])
}

func (k *fakeKernel) own() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.did("own")
}

func (k *fakeKernel) features() (uint64, error) { return k.offer, k.fail["features"] }

func (k *fakeKernel) setFeatures(f uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f&^k.offer != 0 {
		return unix.EOPNOTSUPP
	}
	return k.did("features", fmt.Sprintf(" %#x", f))
}

func (k *fakeKernel) setMemory(regions []memory.Region) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.did("memory", " ", len(regions))
}

func (k *fakeKernel) setSize(ring, n int) error {
	return k.on("size", ring, func(r *fakeRing) error {
		if r.backend >= 0 {
			return unix.EBUSY
		}
		r.size = uint16(n)
		return nil
	})
}

func (k *fakeKernel) setRings(ring int, _, avail, used []byte) error {
	return k.on("rings", ring, func(r *fakeRing) error {
		r.avail, r.used = avail, used
		return nil
	})
}

func (k *fakeKernel) setKick(ring, fd int) error {
	return k.on("kick", ring, func(r *fakeRing) error { r.kick = fd; return nil })
}

func (k *fakeKernel) setCall(ring, fd int) error {
	return k.on("call", ring, func(r *fakeRing) error { r.call = fd; return nil })
}

func (k *fakeKernel) setErr(ring, fd int) error {
	return k.on("err", ring, func(r *fakeRing) error { r.err = fd; return nil })
}

func (k *fakeKernel) setBase(ring int, next uint16) error {
	return k.on("base", ring, func(r *fakeRing) error {
		if r.backend >= 0 {
			return unix.EBUSY
		}
		r.next = next
		return nil
	})
}

func (k *fakeKernel) base(ring int) (uint16, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rings[ring].next, k.fail["get base"]
}

func (k *fakeKernel) setBackend(ring, fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := &k.rings[ring]
	request := "backend"
	if fd < 0 {
		request = "no backend"
	}
	if err := k.did(request, " ", ring); err != nil {
		return err
	}
	if r.backend >= 0 {
		k.end(r)
		if ring == vhostRx {
			k.use(r, k.last, 72)
		}
	}
	r.backend = fd
	if fd < 0 || ring != vhostTx {
		return nil
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	r.stop = stop
	r.served.Go(func() { k.serve(r, stop, r.kick) })
	return nil
}

// end stops the ring's goroutine. It is called under mu.
func (k *fakeKernel) end(r *fakeRing) {
	if r.stop == 0 {
		return
	}
	_, _ = unix.Write(r.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	k.mu.Unlock()
	r.served.Wait()
	k.mu.Lock()
	_ = unix.Close(r.stop)
	r.stop = 0
}

// serve uses what the driver makes available, until stop.
func (k *fakeKernel) serve(r *fakeRing, stop, kick int) {
	for {
		fds := []unix.PollFd{{Fd: int32(stop), Events: unix.POLLIN}, {Fd: int32(kick), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			continue
		}
		if fds[0].Revents != 0 {
			return
		}
		var b [8]byte
		_, _ = unix.Read(kick, b[:])
		k.mu.Lock()
		n := int(virtio.Load16(r.avail, 2) - r.next)
		k.use(r, n, 0)
		k.sent += n
		k.mu.Unlock()
	}
}

// use uses n buffers and calls. It is called under mu.
func (k *fakeKernel) use(r *fakeRing, n int, length uint16) {
	if n == 0 {
		return
	}
	idx := virtio.Load16(r.used, 2)
	for range n {
		e := 4 + 8*int(idx%r.size)
		virtio.Store16(r.used, e, virtio.Load16(r.avail, 4+2*int(r.next%r.size)))
		virtio.Store16(r.used, e+4, length)
		r.next++
		idx++
	}
	virtio.Publish(r.used, 0, idx)
	_, _ = unix.Write(r.call, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// deliver gives the driver n frames, and reports whether it may.
func (k *fakeKernel) deliver(n int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := &k.rings[vhostRx]
	if r.backend < 0 {
		return false
	}
	k.use(r, n, 72)
	return true
}

// lose takes n buffers of the sending ring and does not give them back, and says that
// it has failed: as the kernel does when the interface goes.
func (k *fakeKernel) lose(n uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rings[vhostTx].next += n
	k.breaks()
}

func (k *fakeKernel) breaks() {
	_, _ = unix.Write(k.rings[vhostTx].err, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (k *fakeKernel) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.rings {
		k.end(&k.rings[i])
		k.rings[i].backend = -1
	}
	k.closed++
	return nil
}

// running says which rings have a backend.
func (k *fakeKernel) running() [2]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return [2]bool{k.rings[0].backend >= 0, k.rings[1].backend >= 0}
}

// did returns the requests since the last call.
func (k *fakeKernel) requests() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := slices.Clone(k.log)
	k.log = nil
	return l
}

func (k *fakeKernel) frames() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sent
}

// fakeTap is an interface that comes and goes as the test says.
type fakeTap struct {
	pairs int

	mu      sync.Mutex
	gone    bool
	noticed int
	tell    func(up bool)
	calls   []string
	passed  traffic
	pairErr error
}

func (f *fakeTap) call(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeTap) Features() uint64                   { return offloads }
func (f *fakeTap) MaxPairs() int                      { return f.pairs }
func (f *fakeTap) MTU() int                           { return 1500 }
func (f *fakeTap) Start(features uint64) error        { f.call("start %#x", features); return nil }
func (f *fakeTap) SetPairs(n int) error               { f.call("pairs %d", n); return f.pairErr }
func (f *fakeTap) Wait(int) (bool, error)             { return false, ErrTapGone }
func (f *fakeTap) Receive(int, [][]byte) (int, error) { return 0, ErrTapGone }
func (f *fakeTap) Send(int, [][]byte) error           { return ErrTapGone }
func (f *fakeTap) Stop()                              { f.call("stop") }
func (f *fakeTap) Close() error                       { f.call("close"); return nil }
func (f *fakeTap) NotifyLink(t func(up bool))         { f.tell = t }
func (f *fakeTap) Name() string                       { return "fake" }
func (f *fakeTap) IsUp() bool                         { return true }
func (f *fakeTap) traffic() traffic                   { return f.passed }

func (f *fakeTap) with(pair int, do func(fd int) error) error {
	f.mu.Lock()
	gone := f.gone
	f.mu.Unlock()
	if gone {
		return ErrTapGone
	}
	return do(1000 + pair)
}

func (f *fakeTap) alive() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		f.noticed++
	}
	return !f.gone
}

func (f *fakeTap) set(gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = gone
}

func contextFor(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.Background(), virtiotest.Patience)
}

func countFiles(t testing.TB) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(files)
}

// ownNamespace moves the test to a network namespace of its own, as namespace of the
// tests outside does, and returns the ip command in it.
func ownNamespace(t testing.TB) func(words string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("taps and a network namespace take root")
	}
	if _, err := os.Stat(tunPath); err != nil {
		t.Skip("no taps here: ", err)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command: ", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skip("no network namespace: ", err)
	}
	return func(words string) {
		t.Helper()
		out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput()
		require.NoError(t, err, "ip %s: %s", words, out)
	}
}
