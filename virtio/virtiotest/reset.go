package virtiotest

import (
	"runtime"
	"testing"
)

// resettable is what a transport or a virtio.Function has for it.
type resettable interface {
	SetStatus(status uint8)
	Status() uint8
}

// Reset resets a device and waits until its status reads 0, as a driver must (section
// 2.1.2): on a busy machine one write may not be enough. A reset that does not end fails
// the test and shows what all goroutines are at.
func Reset(tb testing.TB, r resettable) {
	tb.Helper()
	if r.SetStatus(0); r.Status() == 0 || poll(func() bool { return r.Status() == 0 }) {
		return
	}
	stacks := make([]byte, 1<<20)
	tb.Fatalf("virtiotest: waited %v until the reset ends: status %#x\n%s", Patience, r.Status(), stacks[:runtime.Stack(stacks, true)])
}
