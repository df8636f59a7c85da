package kvm

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("not a device"), 0o600))
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()

	tests := []struct {
		name, path string
		want       error
	}{
		{"no such file", filepath.Join(dir, "absent"), fs.ErrNotExist},
		{"a directory", dir, ErrNotKVM},
		{"a regular file", file, ErrNotKVM},
		{"a FIFO", fifo, ErrNotKVM},
		{"a socket", socket, ErrNotKVM},
		{"another device", "/dev/null", ErrNotKVM},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys, err := Open(tt.path)
			require.ErrorIs(t, err, tt.want)
			assert.Nil(t, sys)
			assert.ErrorContains(t, err, tt.path)
		})
	}
}

func TestOpenWithoutPermission(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o000))
	result := make(chan error)
	go func() {
		// Root may open everything, unless its thread gives that up. The thread
		// stays locked, so that it ends with the goroutine.
		runtime.LockOSThread()
		err := unix.Setfsuid(65534)
		if err == nil {
			_, err = Open(file)
		}
		result <- err
	}()
	err := <-result
	require.ErrorIs(t, err, fs.ErrPermission)
	assert.EqualError(t, err, "kvm: open "+file+": permission denied")
}

func TestCheckVersion(t *testing.T) {
	require.NoError(t, checkVersion("/dev/kvm", 12))
	err := checkVersion("/dev/kvm", 11)
	require.ErrorIs(t, err, ErrVersion)
	assert.EqualError(t, err, "kvm: /dev/kvm: unsupported KVM API version: 11 instead of 12")
}

func TestRequire(t *testing.T) {
	sys := openKVM(t)
	assert.Equal(t, "/dev/kvm", sys.Path())
	assert.GreaterOrEqual(t, sys.VCPUMmapSize(), runPageSize)
	require.NoError(t, sys.Require())
	require.NoError(t, sys.Require(CapUserMemory, CapIRQFD, CapImmediateExit))

	err := sys.Require(CapUserMemory, Cap(100000))
	var missing *MissingError
	require.ErrorAs(t, err, &missing)
	assert.Equal(t, Cap(100000), missing.Cap)
	assert.EqualError(t, err, "kvm: this host's KVM lacks KVM capability 100000")

	slots, err := sys.Check(CapNRMemslots)
	require.NoError(t, err)
	assert.Greater(t, slots, 8)
}

func TestErrorSentences(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"asked for", &MissingError{Cap: CapImmediateExit},
			"kvm: this host's KVM lacks KVM_CAP_IMMEDIATE_EXIT (Linux 4.11 introduced it)"},
		{"by an ioctl", &MissingError{Cap: CapPIT2, Op: "KVM_CREATE_PIT2", Err: unix.ENOTTY},
			"kvm: KVM_CREATE_PIT2: this host's KVM lacks KVM_CAP_PIT2 (Linux 2.6.32 introduced it)"},
		{"MSR write", &MSRError{Op: opSetMSRs, Index: 0x10a, Entry: MSREntry{Index: 0x10a, Data: 5}, Done: 3},
			"kvm: KVM_SET_MSRS: KVM refused MSR 0x10a = 0x5 (entry 3)"},
		{"MSR read", &MSRError{Op: opGetMSRs, Index: 0x10a, Done: 3},
			"kvm: KVM_GET_MSRS: KVM refused MSR 0x10a (entry 3)"},
		{"ioctl", opError("KVM_SET_REGS", unix.EINVAL), "kvm: KVM_SET_REGS: invalid argument"},
		{"memory fault", &MemoryFaultError{GPA: 0x1000, Size: 0x1000, Err: unix.EFAULT},
			"kvm: KVM_RUN: no host memory for guest-physical 0x1000 + 0x1000: bad address"},
		{"fail entry", FailEntry{Reason: 0x80000021, CPU: 3},
			"kvm: host CPU 3 refused to enter the guest: reason 0x80000021"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { assert.EqualError(t, tt.err, tt.want) })
	}
}

func TestCapError(t *testing.T) {
	lacks := func(Cap) (int, error) { return 0, nil }
	has := func(Cap) (int, error) { return 1, nil }
	blind := func(Cap) (int, error) { return 0, ErrClosed }

	require.NoError(t, capError("OP", CapPIT2, lacks, nil))

	var missing *MissingError
	err := capError("OP", CapPIT2, lacks, unix.ENOTTY)
	require.ErrorAs(t, err, &missing)
	assert.Equal(t, CapPIT2, missing.Cap)
	assert.ErrorIs(t, err, unix.ENOTTY)

	for name, err := range map[string]error{
		"the capability is there":        capError("OP", CapPIT2, has, unix.EINVAL),
		"it cannot be asked for":         capError("OP", CapPIT2, blind, unix.EINVAL),
		"the errno does not point there": capError("OP", CapPIT2, lacks, unix.ENOMEM),
	} {
		assert.Error(t, err, name)
		assert.False(t, errors.As(err, new(*MissingError)), name)
	}
}

// KVM_CREATE_VM gives up with EINTR when a signal comes while it takes the locks
// of the address space; Go sends itself signals whenever it likes.
func TestCreateVMUnderSignals(t *testing.T) {
	sys := openKVM(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid, pid := unix.Gettid(), unix.Getpid()
	var stop atomic.Bool
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for !stop.Load() {
			_ = unix.Tgkill(pid, tid, unix.SIGURG)
			runtime.Gosched()
		}
	}()
	for range 50 {
		vm, err := sys.CreateVM()
		if err != nil {
			assert.NoError(t, err)
			break
		}
		cpu, err := vm.CreateVCPU(0)
		if assert.NoError(t, err) {
			assert.NoError(t, cpu.Close())
		}
		assert.NoError(t, vm.Close())
	}
	stop.Store(true)
	<-stopped
}
