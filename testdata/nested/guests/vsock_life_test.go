package guests

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/testdata/nested/stream"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/vsock"
	"github.com/vole-vmm/vole/vmm"
)

// accepted waits for a guest's connection.
func accepted(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	require.NoError(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(bootBound)))
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// dialled connects to a port of the guest, once somebody listens there.
func dialled(t testing.TB, path string, port int) buffered {
	t.Helper()
	var b buffered
	require.NoError(t, retry(func() error {
		c, r, err := dialVsock(path, port)
		b = buffered{c, r}
		return err
	}))
	t.Cleanup(func() { b.Close() })
	return b
}

// ends reads a connection to its end, which has to come by itself, and returns how many
// bytes there were.
func ends(t testing.TB, c net.Conn) int64 {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	n, err := io.Copy(io.Discard, c)
	if err != nil {
		require.ErrorContains(t, err, "connection reset by peer")
	}
	return n
}

// anonymous is what a process has resident that is no file's, in MiB.
func anonymous(t testing.TB, pid int) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	return float64(number(t, `RssAnon:\s*(\d+) kB`, string(status))) / 1024
}

// TestVsockNeverRead: programs on the host that accept connections and read nothing: the
// guest's writer waits, vole keeps no more than the connections' credit, and another
// connection works. When they read at last, all is there.
func TestVsockNeverRead(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		const conns, bytes = 32, 2 << 20
		path := filepath.Join(t.TempDir(), "v")
		l := listenUnix(t, path+"_7000")
		defer l.Close()
		serveStreams(t, listenUnix(t, path+"_7001"))
		initrd := vsockInit(t, kernel, fmt.Sprintf(`
peer echo 1000000 vsock:2:7001
echo READY
read go
peer many %d %d vsock:2:7000 &
written() { awk '$1 == "wchar:" { print $2 }' /proc/$1/io; }
last=0 still=0
while [ $still -lt 20 ]; do
	usleep 50000
	now=$(written $!)
	if [ $now = $last ] && [ $now -gt %d ]; then still=$((still+1)); else still=0; fi
	last=$now
done
echo STUCK at $now
peer echo 1000000 vsock:2:7001
echo OTHERS
wait
`, conns, bytes, conns*vsock.MaxWindow))
		// The guest's memory, in a memfd, is not anonymous.
		r, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "--memory-backing", "memfd", "-a", "quiet", "--boot", "vmlinux",
			"--vsock", path, "--transport", transport)
		require.True(t, r.out.until("READY"), r.out)
		before := anonymous(t, r.cmd.Process.Pid)
		_, err := keys.Write([]byte("\n"))
		require.NoError(t, err)
		var silent []net.Conn
		for range conns {
			silent = append(silent, accepted(t, l))
		}
		require.True(t, r.out.until("OTHERS"), r.out)
		after := anonymous(t, r.cmd.Process.Pid)
		t.Logf("%.1f MiB anonymous, %.1f MiB with %d connections that nobody reads", before, after, conns)
		for _, c := range silent {
			go func() { _ = stream.Serve(c) }() // the guest says what was wrong
		}
		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		stuck := number(t, `STUCK at (\d+)`, res.stdout)
		t.Logf("the guest was stuck at %d bytes", stuck)
		assert.Less(t, stuck, conns*bytes/2, said)
		// The credit of all is 8 MiB, and Go's heap has garbage.
		assert.Less(t, after-before, 24.0, "MiB")
		assert.NotContains(t, res.stdout, "FAILED", said)
		assert.Len(t, peerLines(res.stdout), 3, said)
		assert.Empty(t, res.stderr)
	})
}

// counting counts what is written.
type counting struct {
	io.ReadWriter
	written atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ReadWriter.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// TestVsockGuestNeverReads: a program in the guest that accepts connections and reads
// nothing: the host's writers wait, vole keeps no more than the guest's drivers have room
// for, and another connection works. When the guest reads at last, all is there.
func TestVsockGuestNeverReads(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		const conns, bytes = 32, 8 << 20
		path := filepath.Join(t.TempDir(), "v")
		initrd := vsockInit(t, kernel, fmt.Sprintf(`
peer serve 2 vsock:4294967295:7002 &
peer late %d vsock:4294967295:7001
wait
`, conns))
		r, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "--memory-backing", "memfd", "-a", "quiet", "--boot", "vmlinux",
			"--vsock", path, "--transport", transport)
		require.NoError(t, <-reachVsock(path, 7002, "echo", 1_000_000))
		before := anonymous(t, r.cmd.Process.Pid)
		var clients []*counting
		ends := make(chan error, conns)
		for range conns {
			c := &counting{ReadWriter: dialled(t, path, 7001)}
			clients = append(clients, c)
			go func() { ends <- stream.Client(c, "send", bytes) }()
		}
		require.True(t, r.out.until(fmt.Sprintf("PEER has %d clients", conns)), r.out)
		written := func() (n int64) {
			for _, c := range clients {
				n += c.written.Load()
			}
			return n
		}
		last, still := int64(-1), 0
		for end := time.Now().Add(bootBound); still < 20; {
			require.True(t, time.Now().Before(end), "%d bytes are written, and it goes on", last)
			time.Sleep(100 * time.Millisecond)
			if now := written(); now == last {
				still++
			} else {
				last, still = now, 0
			}
		}
		require.NoError(t, <-reachVsock(path, 7002, "echo", 1_000_000))
		after := anonymous(t, r.cmd.Process.Pid)
		t.Logf("%.1f MiB anonymous, %.1f MiB with %d connections that the guest does not read, into which %.1f MiB are written",
			before, after, conns, float64(last)/(1<<20))
		assert.Empty(t, ends, "the host's writers wait")
		assert.Equal(t, last, written())
		_, err := keys.Write([]byte("\n"))
		require.NoError(t, err)
		for range conns {
			assert.NoError(t, <-ends)
		}
		for _, c := range clients {
			require.NoError(t, c.ReadWriter.(buffered).Close()) // the guest waits for it
		}
		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		// A socket's buffer on the host and the guest's credit, and not all that was to go.
		assert.Positive(t, last, said)
		assert.Less(t, last, int64(conns*bytes/4), said)
		assert.Less(t, after-before, 24.0, "MiB")
		assert.NotContains(t, res.stdout, "FAILED", said)
		assert.Len(t, peerLines(res.stdout), 5, said)
		assert.Empty(t, res.stderr)
	})
}

// TestVsockReset: connections that are broken off in the middle, by the host and by the
// guest: the other end is told, and new connections work.
func TestVsockReset(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	netKernels(t, 2, func(t *testing.T, kernel, transport string) {
		path := filepath.Join(t.TempDir(), "v")
		l := listenUnix(t, path+"_7000")
		defer l.Close()
		serveStreams(t, listenUnix(t, path+"_7002"))
		initrd := vsockInit(t, kernel, `
peer send 1000000000 vsock:2:7000 2>&1 | sed 's/PEER FAILED/BROKEN/'
peer recv 1000000000 vsock:2:7000 2>&1 | sed 's/PEER FAILED/BROKEN/'
peer serve 2 vsock:4294967295:7001 &
read go
kill -9 $!
peer echo 1000000 vsock:2:7002
peer serve 1 vsock:4294967295:7003
`)
		asked := reachVsock(path, 7003, "echo", 100_000)
		r, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
			"--vsock", path, "--transport", transport)
		// With much of it unread, and in the middle of what the guest reads.
		c := accepted(t, l)
		_, err := io.CopyN(io.Discard, c, 1<<20)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		c = accepted(t, l)
		_, err = bufio.NewReader(c).ReadString('\n')
		require.NoError(t, err)
		_, err = c.Write(make([]byte, 1<<20))
		require.NoError(t, err)
		require.NoError(t, c.Close())

		reader, writer := dialled(t, path, 7001), dialled(t, path, 7001)
		_, err = io.WriteString(reader, "source 1000000000\n")
		require.NoError(t, err)
		_, err = io.CopyN(io.Discard, reader, 1<<20)
		require.NoError(t, err)
		_, err = io.WriteString(writer, "sink 1000000000\n")
		require.NoError(t, err)
		wrote := make(chan error, 1)
		go func() {
			_, err := io.Copy(writer, zeroes{})
			wrote <- err
		}()
		_, err = keys.Write([]byte("\n"))
		require.NoError(t, err)
		assert.Less(t, ends(t, reader), int64(990_000_000))
		assert.Error(t, <-wrote)
		assert.Zero(t, ends(t, writer))

		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		assert.Contains(t, res.stdout, "BROKEN send", said)
		assert.Contains(t, res.stdout, "BROKEN recv", said)
		assert.NotContains(t, res.stdout, "FAILED", said)
		assert.NoError(t, <-asked, said)
		assert.Empty(t, res.stderr)
	})
}

// zeroes never ends.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestVsockReboot: a guest that resets with connections open and is started again: the
// host's programs see their ends, and reach the new guest by the same paths, as it
// reaches them.
func TestVsockReboot(t *testing.T) {
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		path := filepath.Join(t.TempDir(), "v")
		l := listenUnix(t, path+"_7000")
		defer l.Close()
		initrd := vsockInit(t, kernel, `
peer serve 3 vsock:4294967295:7001 &
peer send 10000000 vsock:2:7000 &
read end; echo END $end
case $end in *reboot*) reboot -f;; esac
wait
`)
		r, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
			"--vsock", path, "--transport", transport, "--on-reset", "restart")
		out := accepted(t, l)
		_, err := io.CopyN(io.Discard, out, 1<<20)
		require.NoError(t, err)
		idle, reading := dialled(t, path, 7001), dialled(t, path, 7001)
		_, err = io.WriteString(reading, "source 1000000000\n")
		require.NoError(t, err)
		_, err = io.CopyN(io.Discard, reading, 1<<20)
		require.NoError(t, err)
		_, err = keys.Write([]byte("reboot\n"))
		require.NoError(t, err)
		for _, c := range []net.Conn{out, reading, idle} {
			ends(t, c)
		}
		for range 3 {
			require.NoError(t, <-reachVsock(path, 7001, "echo", 100_000))
		}
		require.NoError(t, stream.Serve(accepted(t, l)))
		_, err = keys.Write([]byte("here\n"))
		require.NoError(t, err)
		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		assert.Contains(t, res.stdout, "END reboot", said)
		assert.Contains(t, res.stdout, "END here", said)
		assert.NotContains(t, res.stdout, "FAILED", said)
	})
}

// moved is what has gone to and come from a guest.
func moved(d *vsock.Device) [2]vsock.Traffic {
	s := d.Stats()
	return [2]vsock.Traffic{s.Sent, s.Received}
}

// TestVsockPause: a machine is paused with connections open and one being made, again
// and again: nothing moves meanwhile, nothing is lost, and the one is made afterwards.
func TestVsockPause(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		const rounds = 5
		path := filepath.Join(t.TempDir(), "v")
		socket, err := vsock.New(vsock.Options{CID: 3, Path: path})
		require.NoError(t, err)
		serveStreams(t, listenUnix(t, path+"_7000"))
		initrd := vsockInit(t, kernel, fmt.Sprintf(`
peer serve %d vsock:4294967295:7001 &
peer echo 8000000 vsock:2:7000 &
wait
`, rounds+2))
		image := asset(t, kernel)
		way, err := vmm.ParseTransport(transport)
		require.NoError(t, err)
		out := newWatched()
		m, err := vmm.New(vmm.Config{
			Kernel: image, Initrd: initrd, Cmdline: vmm.DefaultCmdline + " quiet", Boot: vmm.BootVMLinux, Cache: cacheWith(t, image),
			Memory: 256 << 20, Devices: []virtio.Device{socket}, Transport: way, ConsoleOut: out, Timeout: bootBound,
		})
		require.NoError(t, err)
		defer m.Close()
		require.NoError(t, m.Start())
		idle, busy := dialled(t, path, 7001), dialled(t, path, 7001)
		echoed := make(chan error, 1)
		go func() { echoed <- stream.Client(busy, "echo", 8_000_000) }()
		for range rounds {
			require.NoError(t, m.Pause())
			before := moved(socket)
			c, err := net.Dial("unix", path)
			require.NoError(t, err)
			defer c.Close()
			_, err = io.WriteString(c, "CONNECT 7001\n")
			require.NoError(t, err)
			require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			_, err = c.Read(make([]byte, 1))
			require.ErrorIs(t, err, os.ErrDeadlineExceeded, "a paused guest has accepted")
			require.Equal(t, before, moved(socket))
			require.NoError(t, m.Resume())
			require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
			r := bufio.NewReader(c)
			line, err := r.ReadString('\n')
			require.NoError(t, err)
			require.Regexp(t, `^OK \d+\n$`, line)
			require.NoError(t, stream.Client(buffered{c, r}, "echo", 1000))
			require.NoError(t, c.Close())
		}
		require.NoError(t, stream.Client(idle, "echo", 100_000))
		require.NoError(t, <-echoed)
		require.NoError(t, errors.Join(idle.Close(), busy.Close()))
		exit, err := m.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, vmm.Exit{Reason: vmm.Poweroff}, exit, out)
		assert.NotContains(t, out.String(), "FAILED")
		assert.Len(t, peerLines(out.String()), 3, out)
	})
}
