package kvm

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain fails the run if a test leaves a KVM descriptor or a
// mapping of one behind.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if left := leftovers(); len(left) > 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "left open at the end:\n%s\n", strings.Join(left, "\n"))
		code = 1
	}
	os.Exit(code)
}

// leftovers lists what this process holds of KVM: open descriptors and run pages.
func leftovers() []string {
	var left []string
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return []string{err.Error()}
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.Contains(target, "kvm") {
			left = append(left, "fd "+fd.Name()+": "+target)
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return append(left, err.Error())
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "kvm-vcpu") {
			left = append(left, "mapping: "+strings.TrimSpace(line))
		}
	}
	return left
}

// openKVM opens /dev/kvm for a test, or skips it with the reason. With
// VOLE_REQUIRE_KVM=1 a host without it is a failure.
func openKVM(t testing.TB) *System {
	t.Helper()
	sys, err := Open("")
	if err != nil {
		if os.Getenv("VOLE_REQUIRE_KVM") == "1" {
			t.Fatalf("VOLE_REQUIRE_KVM=1, but KVM cannot be used: %v", err)
		}
		t.Skipf("needs /dev/kvm: %v", err)
	}
	t.Cleanup(func() {
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	})
	return sys
}

// eventFD returns an eventfd that the test's end closes.
func eventFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// eventCount reads an eventfd's counter; 0 if nothing was written.
func eventCount(t testing.TB, fd int) uint64 {
	t.Helper()
	var b [8]byte
	_, err := unix.Read(fd, b[:])
	if err == unix.EAGAIN {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for i, v := range b {
		n |= uint64(v) << (8 * i)
	}
	return n
}
