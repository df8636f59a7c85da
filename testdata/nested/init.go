package nested

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where init finds what it needs in the emulated host.
const (
	initMarker = "vole_nested" // a word of the kernel command line, which the kernel turns into an environment variable
	jobFile    = "/vole-nested/job.json"
	channelTTY = "/dev/ttyS1"
)

// aliveEvery is how often init says that the emulated host still runs.
const aliveEvery = 2 * time.Second

// outputGrace is how long init waits for output after the command has ended,
// when a process that it left behind holds the pipe open.
const outputGrace = 2 * time.Second

// job is what init is to run.
type job struct {
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
	Dir     string   `json:"dir"`
	Modules []string `json:"modules"` // paths in the emulated host, in loading order
	Out     []string `json:"out"`     // files and directories to send back
	Disk    bool     `json:"disk"`    // there is one to mount
}

// isInit says whether this process is the init of the emulated host.
func isInit() bool {
	return os.Getpid() == 1 && os.Getenv(initMarker) != ""
}

// Inside says whether this process runs in the emulated host.
func Inside() bool { return os.Getenv(envInside) != "" }

// RunIfInit makes this process the init of the emulated host if it was started
// as such; it does not return then. A program that gives itself to the emulated
// host as init calls it first. [Main] does so by itself.
func RunIfInit() {
	if !isInit() {
		return
	}
	if err := initMain(); err != nil {
		fmt.Fprintln(os.Stderr, "nested: init:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Without a power-off the process outside ends QEMU.
	select {}
}

func initMain() error {
	problems := setup()
	tty, err := openChannel()
	if err != nil {
		return err
	}
	w := &frameWriter{w: tty}
	exit := exitInfo{Code: 1}
	var j job
	raw, err := os.ReadFile(jobFile)
	if err == nil {
		err = json.Unmarshal(raw, &j)
	}
	if err != nil {
		exit.Err = fmt.Sprintf("read the job: %v", err)
	} else {
		problems = append(problems, loadModules(j.Modules)...)
		if j.Disk {
			if err := mountDisk(); err != nil {
				problems = append(problems, err.Error())
			}
		}
		_ = w.send(frameReady, encode(ready{Kernel: kernelRelease(), Uptime: uptime(), Problems: problems}))
		go alive(w)
		exit = runJob(j, tty, w)
		if err := sendFiles(w, j.Out); err != nil && exit.Err == "" {
			exit.Err = err.Error()
		}
	}
	if err := w.send(frameExit, encode(exit)); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(tty.Fd()), unix.TCSBRK, 1) // wait until it is out
}

// encode is for this package's own types, which always marshal.
func encode(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

// setup mounts and configures what a test may expect of a machine. What fails
// is reported and not fatal: the test that needs it says more.
func setup() (problems []string) {
	check := func(what string, err error) {
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", what, err))
		}
	}
	mounts := []struct{ dir, kind, opts string }{
		{"/proc", "proc", ""},
		{"/sys", "sysfs", ""},
		{"/dev", "devtmpfs", ""},
		{"/dev/pts", "devpts", "ptmxmode=666"},
		{"/dev/shm", "tmpfs", ""},
		{"/run", "tmpfs", ""},
	}
	for _, m := range mounts {
		check("create "+m.dir, os.MkdirAll(m.dir, 0o755))
		check("mount "+m.dir, unix.Mount(m.kind, m.dir, m.kind, 0, m.opts))
	}
	check("create /tmp", os.MkdirAll("/tmp", 0o777))
	check("create /etc", os.MkdirAll("/etc", 0o755))
	files := []struct{ path, text string }{
		{"/sys/kernel/mm/transparent_hugepage/enabled", "madvise"},
		{"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"/etc/group", "root:x:0:\nnogroup:x:65534:\n"},
		{"/etc/hosts", "127.0.0.1 localhost\n"},
	}
	for _, f := range files {
		check("write "+f.path, os.WriteFile(f.path, []byte(f.text), 0o644))
	}
	links := []struct{ old, new string }{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
	}
	for _, l := range links {
		if err := os.Symlink(l.old, l.new); !errors.Is(err, fs.ErrExist) {
			check("link "+l.new, err)
		}
	}
	check("bring up the loopback interface", loopbackUp())
	return problems
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

func loadModules(paths []string) (problems []string) {
	for _, path := range paths {
		f, err := os.Open(path)
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			problems = append(problems, fmt.Sprintf("load %s: %v", filepath.Base(path), err))
		}
	}
	return problems
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func uptime() float64 {
	var s float64
	raw, _ := os.ReadFile("/proc/uptime")
	_, _ = fmt.Sscan(string(raw), &s)
	return s
}

// openChannel opens the second serial port as a line that changes no byte.
func openChannel() (*os.File, error) {
	fd, err := unix.Open(channelTTY, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", channelTTY, err)
	}
	t := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200, Ispeed: unix.B115200, Ospeed: unix.B115200}
	t.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &t); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up %s: %w", channelTTY, err)
	}
	return os.NewFile(uintptr(fd), channelTTY), nil
}

func alive(w *frameWriter) {
	for range time.Tick(aliveEvery) {
		if w.send(frameAlive, nil) != nil {
			return
		}
	}
}

// startOffBootCPU starts the command where it never runs on the boot CPU, for
// no guest must be entered there. QEMU's emulation (7.2; under 10.0 guests die alike) clears a flag
// of the boot CPU, unlocked, whenever any CPU restores its FPU state
// (cpu_set_fpus calls cpu_clear_ignne); in the same word are the flags of SVM.
// A VMRUN or #VMEXIT on the boot CPU that falls in between loses its change: the
// guest runs without nested paging, the host with it or without interrupts.
// One unquiet boot in ten died of that.
func startOffBootCPU(j job, files []*os.File) (*os.Process, error) {
	runtime.LockOSThread() // a child has the affinity of the thread that starts it
	defer runtime.UnlockOSThread()
	var was, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return nil, fmt.Errorf("read the CPU affinity: %w", err)
	}
	set = was
	set.Clear(0)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("leave the boot CPU: %w", err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &was) }()
	return os.StartProcess(j.Argv[0], j.Argv, &os.ProcAttr{
		Dir: j.Dir, Env: j.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
}

// runJob runs the command to its end, and waits for every other process that
// PID 1 inherits meanwhile.
func runJob(j job, tty io.Reader, w *frameWriter) exitInfo {
	fail := func(err error) exitInfo { return exitInfo{Code: 127, Err: err.Error()} }
	if err := os.MkdirAll(j.Dir, 0o755); err != nil {
		return fail(fmt.Errorf("create the working directory: %w", err))
	}
	for _, out := range j.Out {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return fail(fmt.Errorf("create a directory for results: %w", err))
		}
	}
	var r, own [3]*os.File // what the command has, what init has
	var err error
	for i := range r {
		if i == 0 {
			r[i], own[i], err = os.Pipe()
		} else {
			own[i], r[i], err = os.Pipe()
		}
		if err != nil {
			return fail(fmt.Errorf("create a pipe: %w", err))
		}
	}
	p, err := startOffBootCPU(j, r[:])
	for _, f := range r {
		f.Close()
	}
	if err != nil {
		return fail(fmt.Errorf("start the command: %w", err))
	}
	var outputs sync.WaitGroup
	for i, t := range map[int]frameType{1: frameStdout, 2: frameStderr} {
		outputs.Go(func() { forward(own[i], t, w) })
	}
	go commands(tty, own[0], p.Pid)

	var ws unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fail(fmt.Errorf("wait for the command: %w", err))
		}
		if pid == p.Pid {
			break
		}
	}
	done := make(chan struct{})
	go func() { outputs.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(outputGrace):
	}
	if ws.Signaled() {
		return exitInfo{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return exitInfo{Code: ws.ExitStatus()}
}

// forward sends what comes out of a pipe, in as large frames as are there.
func forward(r io.Reader, t frameType, w *frameWriter) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && w.send(t, buf[:n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// commands does what the process outside asks for.
func commands(tty io.Reader, stdin *os.File, pid int) {
	input := make(chan []byte, 1024)
	go func() {
		defer stdin.Close()
		for p := range input {
			if _, err := stdin.Write(p); err != nil {
				return
			}
		}
	}()
	open := true
	r := bufio.NewReader(tty)
	for {
		t, p, err := readFrame(r)
		if err != nil {
			return
		}
		switch t {
		case frameStdin:
			if open {
				select {
				case input <- p:
				default: // a command that reads nothing must not hold up frameQuit
				}
			}
		case frameEOF:
			if open {
				open = false
				close(input)
			}
		case frameQuit:
			_ = unix.Kill(pid, unix.SIGQUIT)
		case frameTerm:
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}
}

// sendFiles sends every regular file at or below the paths.
func sendFiles(w *frameWriter, paths []string) error {
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			return sendFile(w, path)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("send back %s: %w", root, err)
		}
	}
	return nil
}

func sendFile(w *frameWriter, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := w.send(frameFile, encode(fileHead{Path: path, Mode: uint32(st.Mode().Perm()), Size: int64(len(raw))})); err != nil {
		return err
	}
	for chunk := range slices.Chunk(raw, frameMax) {
		if err := w.send(frameData, chunk); err != nil {
			return err
		}
	}
	return nil
}

// insideEnv picks the variables of this process that the command in
// the emulated host gets too.
func insideEnv(extra []string) []string {
	env := []string{envInside + "=1", "TMPDIR=/tmp", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "VOLE_") || strings.HasPrefix(name, "GO") || name == "CI" || name == "TERM" {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}
