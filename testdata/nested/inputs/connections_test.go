package inputs

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
	virtionet "github.com/vole-vmm/vole/virtio/net"
)

// TestBadConnections: networks, sockets and ports that can't be had are refused with
// one line, exit code 2 and nothing created.
func TestBadConnections(t *testing.T) {
	kernel := asset(t, nested.KernelDefault)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer u.Close()
	_, datagrams, err := net.SplitHostPort(u.LocalAddr().String())
	require.NoError(t, err)
	taken := file(t, "taken", nil)
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"no such tap", []string{"--net", "tap=volenone0"}, []string{"--net: tap=volenone0", "no such interface", "ip tuntap add"}},
		{"no tap", []string{"--net", "tap=lo"}, []string{"--net: tap=lo", "no tap"}},
		{"a name too long", []string{"--net", "tap=" + strings.Repeat("t", 16)}, []string{"--net", "1 to 15 bytes"}},
		{"a port in use", []string{"--net", "user", "--publish", port + ":80"}, []string{"--publish", port, "in use"}},
		{"a UDP port in use", []string{"--net", "user", "--publish", datagrams + ":53/udp"}, []string{"--publish", datagrams, "/udp", "in use"}},
		{"a socket that exists", []string{"--vsock", taken}, []string{"--vsock", taken, "exists"}},
		{"a socket in no directory", []string{"--vsock", taken + "-dir/v"}, []string{"--vsock", taken + "-dir/v"}},
		{"a socket path too long", []string{"--vsock", "/tmp/" + strings.Repeat("v", 120)}, []string{"--vsock", "125 bytes"}},
		{"a port's socket that exists", []string{"--port", "agent=" + taken}, []string{"--port", taken, "exists"}},
		{"a port's path too long", []string{"--port", "agent=/tmp/" + strings.Repeat("p", 120)}, []string{"--port", "107"}},
		{"the second of two", []string{"--vsock", filepath.Join(filepath.Dir(taken), "v"), "--port", "agent=" + taken}, []string{"--port", taken, "exists"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refusedCreatingNothing(t, append([]string{"-k", kernel}, tc.args...), tc.want...)
		})
	}
	require.NoFileExists(t, filepath.Join(filepath.Dir(taken), "v"), "what was opened before is gone")
}

const tunDevice = "/dev/net/tun"

// ownTaps gives the test a network namespace of its own, in which it may make taps. Its
// goroutine keeps its thread, which ends with it.
func ownTaps(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("taps and a network namespace take root")
	}
	if _, err := os.Stat(tunDevice); err != nil {
		t.Skip("no taps here: ", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skip("no network namespace: ", err)
	}
}

// makeTap makes a tap for a user, as `ip tuntap add dev NAME mode tap user UID` does, and
// brings it up.
func makeTap(t testing.TB, name string, user int) {
	t.Helper()
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	require.NoError(t, err)
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, r))
	require.NoError(t, unix.IoctlSetInt(fd, unix.TUNSETOWNER, user))
	require.NoError(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(s)
	r.SetUint16(unix.IFF_UP)
	require.NoError(t, unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r))
}

// TestBadTaps: taps that are there and can't be had, or not like that, are refused with
// one line that says what mends it.
func TestBadTaps(t *testing.T) {
	const nobody = 65534
	ownTaps(t)
	makeTap(t, "roots", 0)
	makeTap(t, "mine", nobody)
	makeTap(t, "busy", 0)
	busy, err := virtionet.OpenTap(virtionet.TapOptions{Name: "busy"})
	require.NoError(t, err)
	defer func() { require.NoError(t, busy.Close()) }()
	root, user := stage{Tun: tunReal}, stage{Tun: tunReal, User: nobody}
	for _, tc := range []struct {
		name string
		on   stage
		net  string
		want []string
	}{
		{"in use", root, "tap=busy", []string{"tap busy: ", "in use"}},
		{"a kernel without vhost-net", root, "tap=roots,vhost", []string{"offers no vhost-net", "sudo modprobe vhost_net"}},
		{"larger packets than the tap's", root, "tap=roots,mtu=9000", []string{"mtu: ", "1500 bytes", "sudo ip link set roots mtu 9000"}},
		{"more queues than the tap has", root, "tap=roots,queues=2", []string{"single queue", "sudo ip tuntap add dev roots mode tap user 0 multi_queue"}},
		{"somebody else's", user, "tap=roots", []string{"no permission", "sudo ip tuntap del dev roots mode tap", "sudo ip tuntap add dev roots mode tap user 65534"}},
		{"not to be made by this user", user, "tap=fresh,create", []string{"no permission", "CAP_NET_ADMIN: sudo ip tuntap add dev fresh mode tap user 65534"}},
		{"no permission for any", stage{Tun: tunForbidden, User: nobody}, "tap=mine", []string{"no permission", "sudo chmod 666 " + tunDevice}},
		{"a kernel without taps", stage{}, "tap=roots", []string{"offers no taps", tunDevice + " is not there", "sudo modprobe tun"}},
		{"a kernel without taps, and one to be made", stage{}, "tap=fresh,create", []string{"offers no taps", "sudo modprobe tun"}},
	} {
		// No subtest: that would be another goroutine, and another namespace.
		r := finish(t, tc.on.command(t, runArgs("8M", "--net", tc.net)...))
		t.Log(tc.name, ": ", r.stderr)
		name, _, _ := strings.Cut(tc.net, ",")
		refused(t, r, 2, append(tc.want, "--net: "+name)...)
	}
	// What is refused above is not the stage's fault: with this tap it is KVM that there is not.
	for _, on := range []stage{user, {Tun: tunReal}} {
		refused(t, finish(t, on.command(t, runArgs("8M", "--net", "tap=mine")...)), 1, "/dev/kvm")
	}
}
