package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

// A box is a guest without a machine: this test again, as PID 1 of namespaces of its
// own, with the agent's connections made over a socket that its end is passed through.
const (
	boxEnv     = "VOLE_AGENT_BOX" // the configuration
	boxDirEnv  = "VOLE_AGENT_DIR" // a directory to mount on
	boxFD      = 3
	noSockets  = 1 // a port
	lossy      = 2 // a port; what is much at once does not go there, but for the first connection
	flaky      = 3 // a port; of three attempts to connect only the third succeeds, but for the first connection
	deserted   = 4 // a port; there is no second connection: that is known when a command has made ranFile
	ranFile    = "/tmp/ran"
	boxMapped  = 100000 // the host's user that is root in a box
	boxTimeout = 2 * time.Minute
)

var boxSecret = wire.Secret{1: 2, 31: 3}

func TestMain(m *testing.M) {
	if text := os.Getenv(boxEnv); text != "" && os.Getpid() == 1 {
		boxMain(text)
	} else if text != "" {
		boxBuild()
	}
	os.Exit(m.Run())
}

func boxFatal(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "box: %s: %v\n", what, err)
		os.Exit(99)
	}
}

// boxBuild puts a box's file systems together, which takes the host's root, and starts
// it. The share is this machine's root with a few devices, changes to which vanish.
func boxBuild() {
	dir := os.Getenv(boxDirEnv)
	boxFatal("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	boxFatal("initramfs", unix.Mount("box", dir, "tmpfs", 0, "mode=0755"))
	for _, d := range []string{"host", "root", "init", "upper", "work", "upper/dev", "upper/dev/pts", "upper/dev/shm", "upper/dev/mqueue", "upper/dev/net", "upper/tmp"} {
		boxFatal("mkdir", os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	unix.Umask(0)
	for name, minor := range map[string]int{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		boxFatal("mknod", unix.Mknod(filepath.Join(dir, "upper/dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, uint32(minor)))))
	}
	boxFatal("mknod", unix.Mknod(filepath.Join(dir, "upper/dev/tty"), unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))))
	boxFatal("mknod", unix.Mknod(filepath.Join(dir, "upper/dev/ptmx"), unix.S_IFCHR|0o666, int(unix.Mkdev(5, 2))))
	boxFatal("mknod", unix.Mknod(filepath.Join(dir, "upper/dev/net/tun"), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
	boxFatal("chown", os.Chown(filepath.Join(dir, "upper/dev"), boxMapped, boxMapped))
	boxFatal("chown", os.Chown(filepath.Join(dir, "upper/tmp"), boxMapped, boxMapped))
	boxFatal("chmod", unix.Chmod(filepath.Join(dir, "upper/tmp"), 0o1755))
	unix.Umask(0o022)
	boxFatal("root", unix.Mount("/", dir+"/root", "", unix.MS_BIND, ""))
	boxFatal("overlay", unix.Mount("box", dir+"/host", "overlay", 0,
		fmt.Sprintf("lowerdir=%[1]s/root,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = os.Environ()
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(boxFD, "box")}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: boxMapped, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // the signal comes at the end of the thread
	boxFatal("start", cmd.Start())
	unix.Close(boxFD)
	_ = cmd.Wait()
	os.Exit(cmd.ProcessState.ExitCode())
}

// boxMain is a box's PID 1.
func boxMain(text string) {
	var c wire.Config
	boxFatal("configuration", json.Unmarshal([]byte(text), &c))
	dir := os.Getenv(boxDirEnv)
	boxFatal("initramfs", unix.Mount("box", dir+"/init", "tmpfs", 0, "mode=0755"))
	boxFatal("mkdir", os.Mkdir(dir+"/init/host", 0o755))
	boxFatal("host", unix.Mount(dir+"/host", dir+"/init/host", "", unix.MS_BIND, ""))
	boxFatal("chdir", unix.Chdir(dir+"/init"))
	boxFatal("move", unix.Mount(".", "/", "", unix.MS_MOVE, ""))
	boxFatal("chroot", unix.Chroot("."))
	boxFatal("chdir", unix.Chdir("/"))
	host, err := unix.Open("/host", unix.O_PATH|unix.O_CLOEXEC, 0)
	boxFatal("open", err)
	if c.Net != nil && c.Hostname == "tap" {
		boxTap()
	}
	_ = os.Unsetenv(boxEnv)
	unix.CloseOnExec(boxFD)
	err = Run(Options{
		Config: c,
		Began:  uptime(),
		Say:    func(s string) { fmt.Fprint(os.Stderr, s) },
		Dial:   boxDial,
		Share: func(tag, dir string, readOnly bool) error {
			if tag != "host" {
				return unix.EINVAL
			}
			return mountFD(host, dir)
		},
		PowerOff: func() { os.Exit(0) },
	})
	boxFatal("the agent went on", err)
}

// boxTap gives the box a network device, for as long as it is there.
func boxTap() {
	fd, err := unix.Open("/host/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	boxFatal("tun", err)
	ifr, err := unix.NewIfreq("eth0")
	boxFatal("tun", err)
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	boxFatal("tap", unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
}

// boxDials is how many connections a box has made.
var boxDials atomic.Int64

// boxDial makes a connection and passes the other end to the test.
func boxDial(port uint32) (*os.File, error) {
	if port == noSockets {
		return nil, unix.EAFNOSUPPORT
	}
	n := boxDials.Add(1)
	if n > 1 {
		switch port {
		case flaky:
			if n%3 != 0 {
				return nil, unix.ECONNRESET
			}
		case deserted:
			var st unix.Stat_t
			for unix.Stat(ranFile, &st) != nil {
				time.Sleep(time.Millisecond)
			}
			return nil, unix.EAFNOSUPPORT
		}
	}
	kind, packets := unix.SOCK_STREAM, n > 1 && port == lossy
	if packets {
		kind = unix.SOCK_SEQPACKET
	}
	p, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(p[1])
	if packets {
		_ = unix.SetsockoptInt(p[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10)
	}
	if err := unix.Sendmsg(boxFD, []byte{0}, unix.UnixRights(p[1]), nil, 0); err != nil {
		unix.Close(p[0])
		return nil, err
	}
	return os.NewFile(uintptr(p[0]), "connection"), nil
}

// boxListener takes the ends that a box passes.
type boxListener struct {
	conn *net.UnixConn
}

func (l boxListener) Accept() (net.Conn, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := l.conn.ReadMsgUnix(make([]byte, 1), oob)
	if err == nil && n == 0 {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, net.ErrClosed
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer f.Close()
	return net.FileConn(f)
}

func (l boxListener) Close() error   { return l.conn.Close() }
func (l boxListener) Addr() net.Addr { return l.conn.LocalAddr() }

// box is a running box.
type box struct {
	net.Listener
	cmd    *exec.Cmd
	out    *console
	exited chan struct{}
	start  func()
}

// console is what a box has on its console.
type console struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *console) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *console) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// startBox starts a box.
func startBox(t testing.TB, c wire.Config) *box {
	t.Helper()
	b := newBox(t, c)
	b.start()
	return b
}

// newBox makes a box that is to be started.
func newBox(t testing.TB, c wire.Config) *box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	c.Secret = boxSecret
	text, err := json.Marshal(c)
	require.NoError(t, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	theirs, ours := os.NewFile(uintptr(pair[0]), "box"), os.NewFile(uintptr(pair[1]), "box")
	conn, err := net.FileConn(ours)
	require.NoError(t, err)
	require.NoError(t, ours.Close())
	dir, err := os.MkdirTemp("", "vole-box-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })

	b := &box{Listener: boxListener{conn.(*net.UnixConn)}, out: &console{}, exited: make(chan struct{})}
	b.cmd = exec.Command("/proc/self/exe")
	b.cmd.Env = []string{boxEnv + "=" + string(text), boxDirEnv + "=" + dir}
	b.cmd.Stdout, b.cmd.Stderr = b.out, b.out
	b.cmd.ExtraFiles = []*os.File{theirs}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	b.start = func() {
		err := b.cmd.Start()
		theirs.Close()
		require.NoError(t, err)
		go func() {
			_ = b.cmd.Wait()
			close(b.exited)
		}()
	}
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.exited
		conn.Close()
		if t.Failed() {
			t.Logf("console: %s", b.out)
		}
	})
	return b
}

// hostRoot is this machine's root, as a box's.
func hostRoot() *wire.Root {
	return &wire.Root{Tag: "host", Overlay: true, Writable: []wire.Text{"/dev"}}
}

// newGuest starts a box and the host's side of it.
func newGuest(t testing.TB, c wire.Config) (*remote.Guest, *box) {
	t.Helper()
	if c.Root == nil {
		c.Root = hostRoot()
	}
	b := startBox(t, c)
	g := remote.New(b, remote.Options{Secret: boxSecret})
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g, b
}

// bounded is a context for the whole of a test.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), boxTimeout)
	t.Cleanup(cancel)
	return ctx
}
