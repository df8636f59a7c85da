package sample

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vole-vmm/vole/vmm/vmtest"
)

func TestMain(m *testing.M) {
	vmtest.Main(m)
}

// TestGuest: this is a guest with the host's files, and the test is not PID 1.
func TestGuest(t *testing.T) {
	if os.Getpid() == 1 || !vmtest.InGuest() {
		t.Errorf("PID %d, in a guest: %v", os.Getpid(), vmtest.InGuest())
	}
	if Covered(true) != "covered" {
		t.Error("not covered")
	}
	if b, err := os.ReadFile("testdata/beside"); err != nil || string(b) != "a file beside the test\n" {
		t.Errorf("testdata: %q, %v", b, err)
	}
	init, err := os.ReadFile("/proc/1/cmdline")
	if err != nil || !strings.HasPrefix(string(init), "/init") {
		t.Errorf("PID 1 is %q, %v", init, err)
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "x"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	// It is gone with the guest.
	if err := os.WriteFile("left-behind", nil, 0o666); err != nil {
		t.Error(err)
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("kernel %suid %d, umask %#o, %s\n", release, os.Getuid(), umask(), os.Getenv("VOLE_SAMPLE"))
}

func umask() int {
	m := syscall.Umask(0)
	syscall.Umask(m)
	return m
}

func TestStreams(t *testing.T) {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		t.Error(err)
	}
	fmt.Fprintf(os.Stdout, "to stdout: %s\n", in)
	fmt.Fprint(os.Stderr, "to stderr\n")
}

func TestUser(*testing.T) { fmt.Printf("uid %d, gid %d\n", os.Getuid(), os.Getgid()) }

func TestFails(t *testing.T) { t.Error("as it should") }

func TestExits(*testing.T) { os.Exit(7) }

func TestKilled(*testing.T) { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }

func TestHangs(*testing.T) {
	fmt.Println("hanging")
	hangsHere()
}

//go:noinline
func hangsHere() {
	for {
		time.Sleep(time.Hour)
	}
}

func TestPanics(t *testing.T) {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		t.Fatal(err)
	}
	hangsHere()
}

// TestRaces fails if the race detector is there.
func TestRaces(*testing.T) {
	n := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		n++
	}()
	n++
	<-done
}

func BenchmarkCovered(b *testing.B) {
	for b.Loop() {
		Covered(false)
	}
}

func FuzzFinds(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 {
			t.Error("found")
		}
	})
}
