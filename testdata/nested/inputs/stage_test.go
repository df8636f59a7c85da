package inputs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
)

// envStage makes the test binary set a stage and become vole on it.
const envStage = "VOLE_TEST_STAGE"

// stage is a host made for a test: a /dev of its own, in a mount namespace of
// its own, which holds what vole and its user may touch.
type stage struct {
	KVM    string // what /dev/kvm is: one of the constants below
	Tun    string // what /dev/net/tun is: one of the constants below
	User   int    // who runs vole
	Space  uint64 // the address space that vole may have, in bytes; 0: any
	Vole   string // is copied to stageVole
	Kernel string // is copied to stageKernel
}

const (
	kvmAbsent    = ""
	kvmForbidden = "forbidden" // a file that only root may open
	kvmNull      = "null"      // another device
	kvmFile      = "file"      // no device
	kvmReal      = "real"      // the machine's
)

const (
	tunAbsent    = ""
	tunForbidden = "forbidden" // one that only root may open
	tunReal      = "real"      // one that everybody may open
)

// Paths on a stage. stageSmall is a file system of 1 MiB.
const (
	stageVole   = "/dev/vole"
	stageKernel = "/dev/kernel"
	stageInitrd = "/dev/initrd"
	stageSmall  = "/dev/small"
)

// stageIfAsked does not return if this process is to be vole on a stage.
func stageIfAsked() {
	text := os.Getenv(envStage)
	if text == "" {
		return
	}
	var s stage
	err := json.Unmarshal([]byte(text), &s)
	if err == nil {
		os.Unsetenv(envStage)
		err = s.set()
	}
	if err == nil {
		err = unix.Exec(stageVole, append([]string{"vole"}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, "the stage:", err)
	os.Exit(99)
}

// set makes this process's /dev what the stage says. Its mount namespace is not
// shared with any other.
func (s stage) set() error {
	null, nerr := unix.Open("/dev/null", unix.O_PATH, 0)
	kvm, kerr := unix.Open("/dev/kvm", unix.O_PATH, 0)
	program, perr := os.Open(s.Vole)
	image, ierr := os.Open(s.Kernel)
	if err := errors.Join(nerr, perr, ierr); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID, "size=128m,mode=755"); err != nil {
		return fmt.Errorf("mount a /dev: %w", err)
	}
	if err := errors.Join(
		copyTo(stageVole, program, 0o755), copyTo(stageKernel, image, 0o644), os.WriteFile(stageInitrd, []byte("unused"), 0o644),
		bind(null, "/dev/null"), os.Mkdir(stageSmall, 0o777),
		unix.Mount("tmpfs", stageSmall, "tmpfs", 0, "size=1m,mode=777"),
	); err != nil {
		return err
	}
	var err error
	switch s.KVM {
	case kvmForbidden:
		err = os.WriteFile("/dev/kvm", nil, 0o600)
	case kvmFile:
		err = os.WriteFile("/dev/kvm", nil, 0o666)
	case kvmNull:
		err = bind(null, "/dev/kvm")
	case kvmReal:
		if err = kerr; err == nil {
			err = bind(kvm, "/dev/kvm")
		}
	}
	if err != nil {
		return fmt.Errorf("make /dev/kvm: %w", err)
	}
	if s.Tun != tunAbsent {
		perm := os.FileMode(0o666)
		if s.Tun == tunForbidden {
			perm = 0o600
		}
		if err := errors.Join(
			os.Mkdir("/dev/net", 0o755), unix.Mknod(tunDevice, unix.S_IFCHR, int(unix.Mkdev(10, 200))), os.Chmod(tunDevice, perm),
		); err != nil {
			return fmt.Errorf("make %s: %w", tunDevice, err)
		}
	}
	if s.Space > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: s.Space, Max: s.Space}); err != nil {
			return fmt.Errorf("limit the address space: %w", err)
		}
	}
	if s.User == 0 {
		return nil
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(s.User), syscall.Setuid(s.User))
}

func copyTo(path string, r io.Reader, perm os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// bind makes what the descriptor stands for appear at path too.
func bind(fd int, path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

// command is `vole args...` on the stage.
func (s stage) command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a /dev of one's own: needs root")
	}
	s.Vole = asset(t, nested.AssetVole)
	if s.Kernel == "" {
		s.Kernel = elfAt(t, 1<<20, 0)
	}
	text, err := json.Marshal(s)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), envStage+"="+string(text), "VOLE_CACHE="+filepath.Join(stageSmall, "cache"))
	// Go makes the mounts of the new namespace private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return cmd
}

// runArgs run the stage's kernel with that much memory.
func runArgs(memory string, more ...string) []string {
	return append([]string{"run", "-k", stageKernel, "-i", stageInitrd, "-m", memory}, more...)
}

// TestStage: the stage itself plays: vole runs on it to the guest's end.
func TestStage(t *testing.T) {
	needKVM(t)
	r := finish(t, stage{KVM: kvmReal}.command(t, runArgs("8M")...))
	assert.Equal(t, 0, r.code, r.stderr)
	assert.Equal(t, "up\n", r.stdout)
}

// needKVM skips a test where there is no KVM, and fails it where
// VOLE_REQUIRE_KVM says that there must be.
func needKVM(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if os.Getenv("VOLE_REQUIRE_KVM") != "" {
		t.Fatalf("VOLE_REQUIRE_KVM is set: %v", err)
	}
	t.Skipf("needs KVM: %v", err)
}
