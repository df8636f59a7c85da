package guests

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/testdata/nested/stream"
)

// network is a network namespace of a test.
type network struct{ fd int }

// ownNetwork gives the test a network namespace of its own: what this goroutine
// starts and what it listens on is in there. The thread is the test's for good, and
// ends with it.
func ownNetwork(t testing.TB) network {
	t.Helper()
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "a network namespace")
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	ip(t, "link set lo up")
	return network{fd}
}

// enter brings this goroutine into the namespace, and its thread, which ends with it.
func (n network) enter() error {
	runtime.LockOSThread()
	return unix.Setns(n.fd, unix.CLONE_NEWNET)
}

// within runs f in another namespace, and returns to this one, which is the test's.
func (n network) within(t testing.TB, other network, f func()) {
	t.Helper()
	require.NoError(t, other.enter())
	f()
	require.NoError(t, n.enter())
}

// beyond makes another namespace. A pair of veth devices joins it with this one, which is
// the test's: veth0 here and far there, which are not up.
func (n network) beyond(t testing.TB) network {
	t.Helper()
	// ip moves a device to where a process is.
	here := exec.Command(asset(t, nested.AssetBusybox), "sleep", "1000")
	require.NoError(t, here.Start())
	defer func() { _ = here.Process.Kill(); _ = here.Wait() }()
	far := ownNetwork(t)
	ip(t, "link add far type veth")
	ip(t, fmt.Sprintf("link set veth0 netns %d", here.Process.Pid))
	atOnce(t, "far")
	require.NoError(t, n.enter())
	atOnce(t, "veth0")
	return far
}

// atOnce has the IPv6 addresses of a device of this thread's namespace usable without
// asking whether somebody else has them.
func atOnce(t testing.TB, device string) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/accept_dad", []byte("0"), 0o644))
}

// do runs f in the namespace, in a goroutine of its own, and returns where its end will be
// told.
func (n network) do(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := n.enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return done
}

// reach runs an exchange of package stream with a server in the guest, once that is
// there, and returns where its end will be told.
func (n network) reach(address, verb string, bytes int64) <-chan error {
	return n.do(func() error { return ask(address, verb, bytes) })
}

// ask runs an exchange of package stream with a server, once that is there.
func ask(address, verb string, bytes int64) error {
	return retry(func() error {
		c, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		return stream.Client(c, verb, bytes)
	})
}

// askDatagrams is ask for datagrams, none of which may be lost.
func askDatagrams(address string, count, size int) error {
	try := func(count int) error {
		c, err := net.Dial("udp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		lost, err := stream.Datagrams(c, count, size, stream.Patience)
		if err == nil && lost > 0 {
			err = fmt.Errorf("%d of %d datagrams to %s were lost", lost, count, address)
		}
		return err
	}
	if err := retry(func() error { return try(1) }); err != nil {
		return err
	}
	return try(count)
}

// retry calls try until it succeeds: a guest says nothing when its server is there.
func retry(try func() error) error {
	end := time.Now().Add(trafficBound() + time.Minute)
	for {
		err := try()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// ip runs busybox's ip, a command a line.
func ip(t testing.TB, commands string) {
	t.Helper()
	for line := range strings.Lines(commands) {
		if line = strings.TrimSpace(line); line != "" {
			busybox(t, append([]string{"ip"}, strings.Fields(line)...)...)
		}
	}
}

// busybox runs one of its programs in this thread's namespaces.
func busybox(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, asset(t, nested.AssetBusybox), args...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return string(out)
}

// streamServer answers clients of package stream at an address of this thread's
// network namespace, until the test ends.
func streamServer(t testing.TB, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	serveStreams(t, l)
}

// serveStreams answers the clients of a listener until the test ends.
func serveStreams(t testing.TB, l net.Listener) {
	var all sync.WaitGroup
	var mu sync.Mutex
	conns := map[io.Closer]bool{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			all.Go(func() {
				_ = stream.Serve(c) // the client says what was wrong
				c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
}

// allowPing lets every group ping in this thread's network namespace.
func allowPing() error {
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644)
}
