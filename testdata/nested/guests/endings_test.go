package guests

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/vmm"
)

// vmlinux is the default kernel's, unpacked: the quickest to boot.
func vmlinux(t testing.TB) string {
	t.Helper()
	path := asset(t, nested.KernelDefault)
	file, ok, err := cacheWith(t, path).Lookup(path)
	require.NoError(t, err)
	require.True(t, ok)
	return file
}

// machine are the arguments of `vole run` for a small guest of the default
// kernel, with words for its command line and more arguments.
func machine(t testing.TB, words string, more ...string) []string {
	t.Helper()
	return append([]string{"run", "-k", vmlinux(t), "-m", "128M", "-a", "quiet " + words}, more...)
}

// TestEndings: every exit code, each by a guest of its own. They run at the same
// time where there are processors, since some mostly wait.
func TestEndings(t *testing.T) {
	dir := t.TempDir()
	report := filepath.Join(dir, "report.json")
	text := filepath.Join(dir, "report.txt")
	for _, tc := range []struct {
		name, words string
		more        []string
		want        int
		stdout      string // on the console
		stderr      string // of vole, "" if it says nothing
		check       func(*testing.T, result)
	}{
		{"poweroff", "", []string{"-c", "2", "--report", report}, 0, "reboot: Power down", "",
			func(t *testing.T, r result) { checkReport(t, r, readReport(t, report)) }},
		{"reboot", "vole.action=reboot", []string{"--report", text}, 3, "reboot: Restarting system", "the guest reset",
			func(t *testing.T, _ result) { checkText(t, text) }},
		{"crash", "vole.action=crash", nil, 4, "Kernel panic - not syncing: sysrq triggered crash", "sysrq triggered crash", nil},
		{"crash, and panic=0 waits for ever", "vole.action=crash panic=0", nil, 4, "Kernel panic - not syncing", "the guest's kernel panicked", nil},
		{"triple fault", "vole.action=triple", nil, 5, "vole guest", "triple fault", nil},
		{"halt", "vole.action=halt", nil, 5, "reboot: System halted", "every processor has halted with its interrupts off", nil},
		{"timeout", "vole.action=hang", []string{"--timeout", "40s"}, 6, "vole guest", "--timeout has passed", nil},
		{"exit 5", "vole.action=exit:5", nil, 7, "vole guest", "the guest wrote 0x5 to the debug exit port", nil},
		{"exit 0", "vole.action=exit:0", nil, 0, "vole guest", "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := vole(t, machine(t, tc.words, tc.more...)...)
			said := "console: " + r.stdout + "\nstderr: " + r.stderr
			assert.Equal(t, tc.want, r.code, said)
			assert.Contains(t, r.stdout, tc.stdout, said)
			if tc.stderr == "" {
				assert.Empty(t, r.stderr)
			} else {
				assert.True(t, strings.HasPrefix(r.stderr, "vole: run: "), said)
				assert.Equal(t, 1, strings.Count(r.stderr, "\n"), said)
				assert.Contains(t, r.stderr, tc.stderr)
			}
			if tc.check != nil {
				tc.check(t, r)
			}
		})
	}
}

func TestSignals(t *testing.T) {
	for _, tc := range []struct {
		signal syscall.Signal
		want   int
		name   string
	}{{syscall.SIGINT, 130, "SIGINT"}, {syscall.SIGTERM, 143, "SIGTERM"}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, machine(t, "vole.action=hang")...)
			require.True(t, r.out.until("vole guest"), r.out.String())
			require.NoError(t, r.cmd.Process.Signal(tc.signal))
			res := r.wait()
			assert.Equal(t, tc.want, res.code, res.stderr)
			assert.Equal(t, "vole: run: "+tc.name+": the guest was ended\n", res.stderr)
		})
	}
}

// TestRestart: a guest that resets is started again, until it does not.
func TestRestart(t *testing.T) {
	report := filepath.Join(t.TempDir(), "report.json")
	r := start(t, machine(t, "vole.action=reboot", "--on-reset", "restart", "--report", report)...)
	require.True(t, r.out.until("reboot: Restarting system"), r.out.String())
	first := len(r.out.String())
	require.True(t, r.out.untilBeyond(first, "vole guest"), r.out.String())
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
	res := r.wait()
	assert.Equal(t, 143, res.code, res.stderr)
	assert.EqualValues(t, 1, readReport(t, report).Restarts)
}

// untilBeyond is until for text behind the first n bytes.
func (w *watched) untilBeyond(n int, text string) bool {
	t := time.AfterFunc(bootBound, w.stop)
	defer t.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !bytes.Contains(w.b[n:], []byte(text)) {
		if w.end {
			return false
		}
		w.more.Wait()
	}
	return true
}

// runReport is what --report writes as JSON, as a user's program would read it.
type runReport struct {
	ExitCode int `json:"exit_code"`
	Exit     struct {
		Reason string `json:"reason"`
	} `json:"exit"`
	Restarts int `json:"restarts"`
	Boot     struct {
		Protocol string `json:"protocol"`
		Cached   bool   `json:"cached"`
		Missed   bool   `json:"missed"`
	} `json:"boot"`
	VCPUs    int    `json:"vcpus"`
	Memory   uint64 `json:"memory_bytes"`
	Timeline []struct {
		Name string `json:"name"`
		At   int64  `json:"at_ns"`
	} `json:"timeline"`
	Exits    map[string]uint64 `json:"exits"`
	Devices  []deviceReport    `json:"devices"`
	Resident struct {
		Guest uint64 `json:"guest_bytes"`
		Vole  uint64 `json:"vole_bytes"`
		Anon  uint64 `json:"vole_anonymous_bytes"`
	} `json:"resident"`
}

// deviceReport is what a report says of a device.
type deviceReport struct {
	Type     string `json:"type"`
	Counters []struct {
		Name  string `json:"name"`
		Value uint64 `json:"value"`
	} `json:"counters"`
}

// counters are the numbers of the devices of a type, in the order of the devices.
func (r runReport) counters(kind string) []map[string]uint64 {
	var all []map[string]uint64
	for _, d := range r.Devices {
		if d.Type != kind {
			continue
		}
		m := map[string]uint64{}
		for _, c := range d.Counters {
			m[c.Name] = c.Value
		}
		all = append(all, m)
	}
	return all
}

func readReport(t testing.TB, path string) runReport {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var r runReport
	require.NoError(t, json.Unmarshal(b, &r), string(b))
	return r
}

// checkReport holds the report of a boot with two vCPUs to its power-off against
// what the run was.
func checkReport(t *testing.T, res result, r runReport) {
	assert.Equal(t, "poweroff", r.Exit.Reason)
	assert.Equal(t, "pvh", r.Boot.Protocol)
	assert.Equal(t, 2, r.VCPUs)
	assert.EqualValues(t, 128<<20, r.Memory)
	var marks []string
	last := int64(0)
	for _, m := range r.Timeline {
		marks = append(marks, m.Name)
		assert.GreaterOrEqual(t, m.At, last, m.Name)
		last = m.At
	}
	assert.Equal(t, []string{"process", "main", vmm.MarkCreated, vmm.MarkEntry}, marks[:4])
	assert.ElementsMatch(t, []string{vmm.MarkConsole, vmm.MarkInit, vmm.MarkExit}, marks[4:])
	assert.Equal(t, vmm.MarkExit, marks[6])
	assert.Less(t, last, int64(bootBound))
	// Looks at the console's port, one at least for each FIFO's worth of bytes; KVM
	// collects the bytes.
	assert.GreaterOrEqual(t, r.Exits["port-in"], uint64(len(res.stdout)/16))
	assert.Positive(t, r.Exits["port-out"])
	// A booted kernel touches tens of MiB; vole itself must not.
	assert.Greater(t, r.Resident.Guest, uint64(16<<20))
	assert.LessOrEqual(t, r.Resident.Guest, r.Memory)
	assert.Positive(t, r.Resident.Anon)
	assert.Less(t, r.Resident.Anon, r.Resident.Vole)
	assert.Less(t, r.Resident.Vole, uint64(32<<20))
}

func checkText(t *testing.T, path string) {
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, want := range []string{"ended     reset (exit code 3)", "timeline  from the start of the process", "\n  init ", "\n  exit ", "\nexits ", "\n  port-out ", "\nresident "} {
		assert.Contains(t, string(text), want)
	}
}

// TestPanicWordsOfUserSpace: who only prints a panic's words has not panicked.
func TestPanicWordsOfUserSpace(t *testing.T) {
	initrd := shellInit(t, "echo 'Kernel panic - not syncing: said the shell'\necho '[    1.000000] Kernel panic - not syncing: it said again'\npoweroff -f\n")
	r := vole(t, machine(t, "", "-i", initrd)...)
	assert.Equal(t, 0, r.code, r.stderr)
	assert.Contains(t, r.stdout, "it said again")
	assert.Contains(t, r.stdout, "reboot: Power down")
}

// TestNoUserSpace: without a user space to come to, the guest's kernel panics.
// What it said last is on stdout, and the panic's line in vole's reason.
func TestNoUserSpace(t *testing.T) {
	whole, err := os.ReadFile(initWith(t, leanInit))
	require.NoError(t, err)
	truncated := filepath.Join(t.TempDir(), "truncated.cpio")
	require.NoError(t, os.WriteFile(truncated, whole[:len(whole)/2], 0o644))
	for _, tc := range []struct {
		name, initrd, says, panics string
	}{
		{"truncated initrd", truncated, "Can't open blockdev", "Unable to mount root fs"},
		{"init is no program", archiveOf(t, "\x7fELF, it says"), "Failed to execute /init", "No working init found"},
		{"init ends", initWith(t, "#!/bin/busybox sh\necho GOODBYE\nexit 3\n"), "GOODBYE", "Attempted to kill init! exitcode=0x00000300"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := vole(t, machine(t, "", "-i", tc.initrd)...)
			said := "console: " + r.stdout + "\nstderr: " + r.stderr
			assert.Equal(t, 4, r.code, said)
			assert.Contains(t, r.stdout, tc.says, said)
			assert.Contains(t, r.stdout, tc.panics, said)
			assert.Contains(t, r.stderr, tc.panics, said)
			assert.Equal(t, 1, strings.Count(r.stderr, "\n"), said)
		})
	}
}

// TestDamagedKernel: a kernel that can't unpack itself halts without a word on the
// serial port; the run ends all the same, and says so.
func TestDamagedKernel(t *testing.T) {
	raw, err := os.ReadFile(needKernel(t, nested.KernelGeneric61)) // XZ, which has checksums
	require.NoError(t, err)
	for i := range 16 {
		raw[len(raw)/3+i] ^= 0xff
	}
	damaged := filepath.Join(t.TempDir(), "vmlinuz")
	require.NoError(t, os.WriteFile(damaged, raw, 0o644))
	r := vole(t, "run", "-k", damaged, "-m", "128M")
	assert.Equal(t, 5, r.code, "console: %s\nstderr: %s", r.stdout, r.stderr)
	assert.Contains(t, r.stderr, "the guest can't go on: every processor has halted with its interrupts off")
}

// archiveOf makes an initramfs of nothing but that init, and returns its path.
func archiveOf(t testing.TB, init string) string {
	t.Helper()
	var a initramfs.Archive
	require.NoError(t, a.Dir("/dev", 0o755))
	require.NoError(t, a.CharDevice("/dev/console", 0o600, 5, 1))
	require.NoError(t, a.Bytes("/init", 0o755, []byte(init)))
	return writeArchive(t, &a)
}

func writeArchive(t testing.TB, a *initramfs.Archive) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "initrd.cpio")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = a.Image().WriteTo(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}

// TestFullDiskUnderTheCache: a kernel that can't be kept for the next run costs
// this one a warning.
func TestFullDiskUnderTheCache(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system to mount: needs root")
	}
	full := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(full, 0)) })
	ctx, cancel := context.WithTimeout(t.Context(), bootBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, asset(t, nested.AssetVole), "run", "-k", asset(t, nested.KernelDefault), "-m", "128M", "-a", "quiet")
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(full, "cache"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "stderr: %s\nconsole: %s", &errs, &out)
	assert.Contains(t, out.String(), "reboot: Power down")
	assert.Regexp(t, `(?m)^vole: run: warning: the unpacked kernel is not kept for the next run: .*no space left on device$`, errs.String())
	var left []string
	require.NoError(t, filepath.WalkDir(full, func(path string, d os.DirEntry, err error) error {
		if st, serr := os.Stat(path); err == nil && serr == nil && st.Mode().IsRegular() && st.Size() > 0 {
			left = append(left, path)
		}
		return err
	}))
	assert.Empty(t, left)
}

// buttonModules are the drivers that a guest needs to be told of the power
// button: of the button, and of the event that it makes.
var buttonModules = []string{"button", "evdev"}

// buttonFiles are the files of these modules, for [nested.Options].
func buttonFiles() []string {
	dir, err := nested.Asset("modules" + strings.TrimPrefix(defaultKernel(), "kernel"))
	if err != nil {
		return nil
	}
	modules, err := initramfs.OpenModules(dir)
	if err != nil {
		return nil
	}
	sel, err := modules.Select(initramfs.SelectOptions{}, buttonModules...)
	if err != nil {
		return nil
	}
	var files []string
	for _, m := range sel.Load {
		files = append(files, filepath.Join(dir, m.Path))
	}
	return files
}

// defaultKernel is the name that KernelDefault has among the kernels.
func defaultKernel() string {
	path, err := nested.Asset(nested.KernelDefault)
	if err != nil {
		return ""
	}
	list, _ := nested.Kernels()
	for _, k := range list {
		if k.Image == path {
			return k.Name
		}
	}
	return ""
}

// TestPowerButton: a guest that has the button's driver is told of it, and may
// power off.
func TestPowerButton(t *testing.T) {
	dir := asset(t, "modules"+strings.TrimPrefix(defaultKernel(), "kernel"))
	modules, err := initramfs.OpenModules(dir)
	require.NoError(t, err)
	sel, err := modules.Select(initramfs.SelectOptions{}, buttonModules...)
	require.NoError(t, err)
	var a initramfs.Archive
	load, err := a.AddModules(modules, sel, "/lib")
	require.NoError(t, err)
	busybox, err := os.ReadFile(asset(t, nested.AssetBusybox))
	require.NoError(t, err)
	require.NoError(t, a.Bytes("/bin/busybox", 0o755, busybox))
	script := "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\nmkdir -p /dev\nmount -t devtmpfs dev /dev\n"
	for _, path := range load {
		script += "insmod " + path + "\n"
	}
	// The event waits for its reader as soon as the device is open.
	script += `exec 3</dev/input/event0 && echo LISTENING
dd bs=24 count=1 <&3 2>/dev/null | hexdump -v -e '24/1 "%02x" "\n"' | sed 's/^/EVENT /'
poweroff -f
`
	require.NoError(t, a.Dir("/bin", 0o755))
	require.NoError(t, a.Dir("/dev", 0o755))
	require.NoError(t, a.CharDevice("/dev/console", 0o600, 5, 1))
	require.NoError(t, a.Bytes("/init", 0o755, []byte(script)))

	out := newWatched()
	m, err := vmm.New(vmm.Config{
		Kernel: vmlinux(t), Initrd: writeArchive(t, &a), Cmdline: vmm.DefaultCmdline + " quiet",
		Memory: 128 << 20, CPUs: 1, ConsoleOut: out, Timeout: bootBound,
	})
	require.NoError(t, err)
	defer m.Close()
	require.ErrorIs(t, m.PowerButton(), vmm.ErrState)
	require.NoError(t, m.Start())
	require.True(t, out.until("LISTENING"), out.String())
	require.NoError(t, m.PowerButton())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exit, err := m.Wait(ctx)
	require.NoError(t, err, out.String())
	assert.Equal(t, vmm.Exit{Reason: vmm.Poweroff}, exit, out.String())
	// A struct input_event behind its time: EV_KEY, KEY_POWER, pressed.
	assert.Regexp(t, `EVENT [0-9a-f]{32}0100740001000000`, out.String())
}

// shellInitWith is shellInit with more files in the archive.
func shellInitWith(t testing.TB, files map[string][]byte, script string) string {
	t.Helper()
	path := shellInit(t, script)
	var a initramfs.Archive
	for name, data := range files {
		require.NoError(t, a.Bytes(name, 0o644, data))
	}
	more, err := os.ReadFile(writeArchive(t, &a))
	require.NoError(t, err)
	// The kernel unpacks archives that follow each other one into the other.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.Write(more)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}
