package guests

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/testdata/nested"
)

// forceUnload oopses a stock kernel: what is used of a module that was unloaded by force
// is not there any more. sync(2) does not look at a file system that is read-only.
const forceUnload = `mkdir /tmp/b; mount -t binfmt_misc -o ro b /tmp/b || exit 9; rmmod -f binfmt_misc || exit 8; cat /tmp/b/status >/dev/null 2>&1; `

// oopsAndEnd ends well while the kernel is still telling of its oops, on another CPU.
const oopsAndEnd = `mkdir /tmp/b; mount -t binfmt_misc -o ro b /tmp/b || exit 9; rmmod -f binfmt_misc || exit 8
(sleep 2; cat /tmp/b/status) >/dev/null 2>&1 &
while read -r line; do case $line in *RIP:*) exit 0; esac; done </proc/kmsg`

// execModules are what a guest of `vole exec` is given for these tests, besides its drivers.
var execModules = []string{"binfmt_misc"}

// execFailure is a guest that fails in its way.
type execFailure struct {
	name    string
	suite   nested.Suite // "" is all
	flags   []string
	command []string
	bound   time.Duration // from the start to the end, besides the boot
	want    int
	says    string // in the first line on stderr
	also    string // the second line, if that is not the console
	console string // in the last screen of the console behind it, "" if there is none
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// TestExecFailures: each way for a guest to fail has its exit code, its bound, and its
// reason in the first line on stderr.
func TestExecFailures(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"), 0o644))
	for i, tc := range []execFailure{
		{name: "no such program", command: []string{"no-such-program"}, want: 127,
			says: "no-such-program: no such program in the guest's PATH: no such file or directory"},
		{name: "not executable", suite: nested.SuiteMatrix, command: []string{file}, want: 126, says: file + ": permission denied"},
		{name: "no such directory", suite: nested.SuiteMatrix, flags: []string{"--cwd", "/no/such"}, command: []string{"true"}, want: 125,
			says: "--cwd: /no/such: no such file or directory"},
		{name: "panic", command: sh("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"), want: 121,
			says: "the guest's kernel panicked: sysrq triggered crash", console: "Kernel panic - not syncing: sysrq triggered crash"},
		{name: "signals to the agent do nothing", suite: nested.SuiteMatrix,
			command: sh("for s in KILL SEGV ABRT QUIT TERM BUS; do kill -$s 1; done; exit 5"), want: 5},
		{name: "the agent crashes", suite: nested.SuiteMatrix, want: 121,
			// All of its code, which a static Go program has here.
			command: sh("dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((0x401000/4096)) count=300 conv=notrunc; sleep 1000"),
			says:    "the guest's kernel panicked: Attempted to kill init!", console: "Kernel panic"},
		{name: "oops", flags: []string{"--fatal-oops", "--module", "binfmt_misc"}, command: sh(forceUnload + "sleep 1000"), want: 122,
			says: "the guest's kernel oopsed: BUG: unable to handle page fault", console: "Comm: cat"},
		{name: "oops, and the command ends", flags: []string{"--fatal-oops", "--module", "binfmt_misc", "-c", "2"},
			command: sh(oopsAndEnd), want: 122, says: "the guest's kernel oopsed: BUG: unable to handle page fault", console: "Comm: cat"},
		{name: "oops that panics", suite: nested.SuiteMatrix, flags: []string{"--fatal-oops", "--module", "binfmt_misc", "-a", "oops=panic"},
			command: sh(forceUnload + "exit 0"), want: 122, says: "the guest's kernel oopsed: BUG: unable to handle page fault", console: "Comm: cat"},
		{name: "oops that is not fatal", suite: nested.SuiteMatrix, flags: []string{"--module", "binfmt_misc"},
			command: sh(forceUnload + "exit 5"), want: 5, says: "warning: the guest's kernel oopsed: BUG: unable to handle page fault"},
		{name: "oops that sync(2) dies of as well", suite: nested.SuiteMatrix, flags: []string{"--module", "binfmt_misc"}, bound: 10 * time.Second,
			command: sh("mkdir /tmp/b; mount -t binfmt_misc b /tmp/b || exit 9; rmmod -f binfmt_misc; { sync & wait $!; } 2>/dev/null; exit 5"), want: 5,
			says: "warning: the guest's kernel oopsed: BUG: unable to handle page fault",
			also: "vole: exec: warning: what the command wrote may not all be written: the guest's kernel has oopsed, and does not answer: context deadline exceeded"},
		{name: "hang before init", flags: []string{"--boot-timeout", "30s", "-a", "rdinit=/none root=/dev/none rootwait loglevel=7"}, command: []string{"true"},
			bound: 30 * time.Second, want: 124, says: "the guest has not come up within 30s", console: "Waiting for root device"},
		{name: "init missing", flags: []string{"-a", "rdinit=/none"}, command: []string{"true"}, want: 121,
			says: "the guest's kernel panicked: VFS: Unable to mount root fs", console: "Kernel panic"},
		{name: "silence", suite: nested.SuiteMatrix, flags: []string{"--hang", "3s"}, command: []string{"sleep", "1000"}, bound: 3 * time.Second, want: 124,
			says: "nothing has come of the guest for 3s"},
		{name: "timeout", flags: []string{"--timeout", "30s"}, command: []string{"sleep", "1000"}, bound: 30 * time.Second, want: 124,
			says: "--timeout has passed: the guest was ended"},
		{name: "the agent stops", suite: nested.SuiteMatrix, bound: 70 * time.Second, want: 124, says: "the guest has not answered for 1m0s",
			command: sh("mkdir /sys/fs/cgroup/x && echo 1 >/sys/fs/cgroup/x/cgroup.procs && echo 1 >/sys/fs/cgroup/x/cgroup.freeze; sleep 1000")},
		{name: "out of memory", flags: []string{"-m", "192M"}, want: 123,
			command: sh("echo 1 >/proc/sys/vm/overcommit_memory; exec dd if=/dev/zero of=/dev/null bs=300M"),
			says:    "the guest had no memory left, and its kernel killed the command", console: "Out of memory: Killed process"},
		{name: "out of memory, a child", suite: nested.SuiteMatrix, flags: []string{"-m", "192M"}, want: 5,
			command: sh("echo 1 >/proc/sys/vm/overcommit_memory; dd if=/dev/zero of=/dev/null bs=300M 2>/dev/null; exit 5"),
			says:    "warning: the guest had no memory left, and its kernel killed processes (1)"},
		{name: "a directory that the guest has not", suite: nested.SuiteMatrix, flags: []string{"--cwd", inMemory(t, "/run")}, command: []string{"true"},
			want: 126, says: "the working directory /run/"},
		{name: "poweroff", suite: nested.SuiteMatrix, command: sh("poweroff -f; sleep 1000"), want: 120, says: "the guest powered off before the command ended"},
		{name: "reboot", suite: nested.SuiteMatrix, command: sh("reboot -f; sleep 1000"), want: 120,
			says: "the guest reset before the command ended"},
		{name: "no such module", flags: []string{"--module", "no_such"}, command: []string{"true"}, want: 125, says: "no_such"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.suite != "" {
				nested.RequireSuite(t, tc.suite)
			}
			t.Parallel()
			dir := t.TempDir()
			flags := append([]string{"--console-log", filepath.Join(dir, "console")}, tc.flags...)
			e := execVole(t, i, flags, tc.command...)
			began := time.Now()
			r := e.result(t)
			took := time.Since(began)
			assert.Equal(t, tc.want, r.code, "%s%s", r.stdout, r.stderr)
			if tc.also != "" {
				first, rest, _ := strings.Cut(r.stderr, "\n")
				second, rest, more := strings.Cut(rest, "\n")
				assert.Equal(t, tc.also, second)
				if r.stderr = first; more {
					r.stderr += "\n" + rest
				}
			}
			checkReason(t, r, tc.says, tc.console)
			assert.GreaterOrEqual(t, took, tc.bound)
			assert.Less(t, took, tc.bound+time.Minute)
			if tc.console != "" {
				log, err := os.ReadFile(filepath.Join(dir, "console"))
				require.NoError(t, err)
				assert.Contains(t, string(log), tc.console, "the console's log")
			}
		})
	}
}

// TestExecHangWaits: while nobody reads what the command has written, its silence is not
// the guest's.
func TestExecHangWaits(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	const hang = 3 * time.Second
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	e := execVole(t, 0, []string{"--hang", hang.String()}, "dd", "if=/dev/zero", "bs=64k", "count=64")
	e.Stdout = w
	running := e.begin(t)
	require.NoError(t, w.Close())
	_, err = io.ReadFull(r, make([]byte, 64<<10)) // the command has begun
	require.NoError(t, err)
	time.Sleep(2 * hang)
	n, err := io.Copy(io.Discard, r)
	require.NoError(t, err)
	assert.EqualValues(t, 63*64<<10, n)
	res := running.wait()
	assert.Equal(t, 0, res.code, res.stderr)
}

// checkReason looks for the reason in the first line on stderr, and for words on the
// console's last screen behind it.
func checkReason(t testing.TB, r result, says, console string) {
	t.Helper()
	if says == "" {
		assert.Empty(t, r.stderr)
		return
	}
	first, rest, _ := strings.Cut(r.stderr, "\n")
	assert.True(t, strings.HasPrefix(first, "vole: exec: "), r.stderr)
	assert.Contains(t, first, says, r.stderr)
	if rest != "" {
		assert.True(t, strings.HasPrefix(rest, "the last of the guest's console:\n  "), r.stderr)
	}
	if console != "" {
		assert.Contains(t, rest, console)
	}
}

// TestExecNoModules: a kernel that nothing is known of but its image can't show this
// machine's files, and vole says what is missing.
func TestExecNoModules(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	e := execKernel(t, vmlinux(t), t.TempDir(), []string{"--boot-timeout", "30s"}, "true")
	r := e.result(t)
	assert.Contains(t, []int{120, 121, 124}, r.code, r.stderr)
	checkReason(t, r, "no modules", "")
}

// TestExecNoVirtio: of a kernel without drivers nothing is started.
func TestExecNoVirtio(t *testing.T) {
	t.Parallel()
	image := asset(t, nested.KernelDefault)
	modules, err := kernel.ModulesFor(image)
	require.NoError(t, err)
	home := t.TempDir()
	without := filepath.Join(home, "lib/modules", filepath.Base(modules))
	for _, dir := range []string{filepath.Join(home, "boot"), filepath.Join(without, "kernel")} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	for from, to := range map[string]string{image: filepath.Join(home, "boot", filepath.Base(image)), filepath.Join(modules, "modules.builtin"): filepath.Join(without, "modules.builtin")} {
		b, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, b, 0o644))
	}
	for transport, driver := range map[string]string{"pci": "virtio_pci", "mmio": "virtio_mmio"} {
		e := execKernel(t, filepath.Join(home, "boot", filepath.Base(image)), t.TempDir(), []string{"--transport", transport}, "true")
		r := e.result(t)
		assert.Equal(t, 125, r.code, r.stderr)
		checkReason(t, r, "the guest's kernel lacks a driver that it needs: ", "")
		assert.Contains(t, r.stderr, "no such module: "+driver+"\n")
	}
}

// TestExecNoSpace: a host without space costs warnings, which begin with the reason,
// and not the command's result, nor time.
func TestExecNoSpace(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	if os.Geteuid() != 0 {
		t.Skip("a small file system to mount: needs root")
	}
	t.Parallel()
	full := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(full, unix.MNT_DETACH)) })
	require.NoError(t, os.WriteFile(filepath.Join(full, "ballast"), make([]byte, 56<<10), 0o644))
	image := asset(t, nested.KernelDefault)
	log := filepath.Join(full, "console")
	e := execKernel(t, image, filepath.Join(full, "cache"), []string{"--console-log", log, "--append", "loglevel=7", "--rw", full},
		"sh", "-c", `echo from the guest; dd if=/dev/zero of="$1" bs=64k count=2 || exit 6`, "sh", filepath.Join(full, "file"))
	began := time.Now()
	r := e.result(t)
	assert.Less(t, time.Since(began), time.Minute)
	assert.Equal(t, 6, r.code, r.stderr)
	assert.Equal(t, "from the guest\n", r.stdout)
	assert.Contains(t, r.stderr, "No space left on device\n", "of the command")
	ours := 0
	for line := range strings.Lines(r.stderr) {
		if strings.HasPrefix(line, "vole: ") {
			assert.True(t, strings.HasPrefix(line, "vole: exec: warning: "), line)
			assert.Contains(t, line, "no space left on device")
			ours++
		}
	}
	assert.Equal(t, 2, ours, "the console's log and the cache: %s", r.stderr)
}

// TestExecKilled: of a vole that was killed nothing is left: no process, no file. Where
// all of this machine is writable, what was written is.
func TestExecKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := execVole(t, 0, []string{"--rw", "/"}, "sh", "-c", `echo written >"$1"; echo ready; exec sleep 1000`, "sh", filepath.Join(dir, "file"))
	e.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r := e.begin(t)
	require.True(t, r.out.until("ready\n"), "%s", &r.errs)
	require.NoError(t, e.Process.Kill())
	err := e.Wait()
	require.Error(t, err)
	assert.Equal(t, syscall.SIGKILL, e.ProcessState.Sys().(syscall.WaitStatus).Signal())
	assert.ErrorIs(t, syscall.Kill(-e.Process.Pid, 0), syscall.ESRCH, "its process group")
	assert.Equal(t, []string{"file"}, names(t, dir))
}
