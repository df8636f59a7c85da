package net_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	stdnet "net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// namespace moves the test to a network namespace of its own. The test's goroutine
// keeps its thread, which ends with it. Without root, /dev/net/tun or ip the test is
// skipped.
func namespace(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("taps and a network namespace take root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("no taps here: ", err)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command: ", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skip("no network namespace: ", err)
	}
}

// ip runs the ip command in the namespace of this thread.
func ip(t testing.TB, words string) {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", words, out)
}

// hostSide is a packet socket on an interface, for whole frames.
type hostSide struct {
	t  testing.TB
	fd int
}

// testType is the EtherType of the frames here, so that the kernel's own do not get
// between them.
const testType = 0x88b5

func newHostSide(t testing.TB, name string) *hostSide {
	t.Helper()
	proto := uint16(testType>>8 | testType&0xff<<8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto))
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	i, err := stdnet.InterfaceByName(name)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index}))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(virtiotest.Patience / time.Second)}))
	return &hostSide{t, fd}
}

func (h *hostSide) send(f []byte) {
	h.t.Helper()
	for {
		_, err := unix.Write(h.fd, f)
		if !errors.Is(err, unix.EINTR) {
			require.NoError(h.t, err)
			return
		}
	}
}

func (h *hostSide) receive() []byte {
	h.t.Helper()
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(h.fd, b)
		if !errors.Is(err, unix.EINTR) {
			require.NoError(h.t, err)
			return b[:n]
		}
	}
}

// testFrame is a frame of the test's type, to the guest.
func testFrame(n int, seed byte) []byte {
	f := frame(guestMAC, n, seed)
	copy(f[6:], virtionet.StableMAC("host"))
	binary.BigEndian.PutUint16(f[12:], testType)
	return f
}

// onlyTest has the guest get no frames but those of the test: the kernel sends
// multicast ones of its own when an interface comes up.
func (n nic) onlyTest() {
	n.t.Helper()
	require.Zero(n.t, n.command(0, 0, 0))
}

// openTap opens a tap of the test, which must work.
func openTap(t testing.TB, o virtionet.TapOptions) *virtionet.Tap {
	t.Helper()
	tap, err := virtionet.OpenTap(o)
	require.NoError(t, err)
	return tap
}

// TestTap: frames both ways through a real tap, one and many queues, made before and
// made by vole.
func TestTap(t *testing.T) {
	namespace(t)
	ip(t, "tuntap add dev one mode tap")
	ip(t, "tuntap add dev many mode tap multi_queue")
	for _, name := range []string{"one", "many"} {
		ip(t, "link set "+name+" mtu 9000 up")
	}
	for _, tc := range []struct {
		name string
		o    virtionet.TapOptions
		mtu  int
	}{
		{"one queue", virtionet.TapOptions{Name: "one"}, 9000},
		{"one queue of many", virtionet.TapOptions{Name: "many", Pairs: 1}, 9000},
		{"many queues", virtionet.TapOptions{Name: "many", Pairs: 3}, 9000},
		{"made", virtionet.TapOptions{Name: "made", Create: true}, 1500},
		{"made with many", virtionet.TapOptions{Name: "made", Pairs: 4, Create: true}, 1500},
		{"there already", virtionet.TapOptions{Name: "one", Create: true}, 9000},
	} {
		for _, tr := range []struct {
			name string
			open virtiotest.Opener
		}{{"mmio", virtiotest.OpenMMIO}, {"pci", virtiotest.OpenPCI}} {
			// No subtest: that would be another goroutine, and another namespace.
			what := tc.name + ", " + tr.name
			tap := openTap(t, tc.o)
			assert.Equal(t, tc.mtu, tap.MTU(), what)
			assert.Equal(t, tc.o.Name, tap.Name())
			assert.True(t, tap.IsUp(), what)
			host := newHostSide(t, tc.o.Name)
			n := attach(t, tr.open, tap, virtionet.Options{}, 0)
			n.onlyTest()
			bufs := n.post(0, slices.Repeat([]int{1536}, 60)...)
			for i := range 6 {
				f := testFrame(60+i*280, byte(i))
				host.send(f)
				_, got := n.got(0, &bufs)
				require.Equal(t, f, got, what)
				f = testFrame(60+i*280, byte(0x80+i))
				copy(f, virtionet.StableMAC("host"))
				n.send(0, make([]byte, 12), f[:20], f[20:])
				require.Equal(t, f, host.receive(), what)
			}
			if pairs := max(tc.o.Pairs, 1); pairs > 1 {
				for _, k := range []int{pairs, 1, pairs, 2, 2} {
					require.Zero(t, n.command(4, 0, byte(k), 0), what)
					for p := range k {
						f := testFrame(100, byte(p))
						n.send(p, make([]byte, 12), f)
						require.Equal(t, f, host.receive(), what)
					}
				}
			}
			// Again after a reset, with other features.
			n.Start(virtionet.FeatureMrgRxBuf | virtio.FeatureIndirectDesc)
			bufs = n.post(0, 1536, 1536, 1536)
			f := testFrame(90, 9)
			host.send(f)
			for {
				_, got := n.got(0, &bufs)
				if bytes.Equal(f, got) {
					break
				}
				bufs = append(bufs, n.post(0, 1536)...)
			}
			n.send(0, make([]byte, 12), f)
			require.Equal(t, f, host.receive(), what)
			require.NoError(t, n.Function.Close(patient(t)))
			require.NoError(t, n.dev.Close())
		}
	}
	_, err := stdnet.InterfaceByName("made")
	assert.Error(t, err, "one that was made is gone")
	_, err = stdnet.InterfaceByName("one")
	assert.NoError(t, err)
}

// TestTapTooLong: a frame that does not fit is dropped, and the next one comes; so is
// one for which there is no room for a header even.
func TestTapTooLong(t *testing.T) {
	namespace(t)
	tap := openTap(t, virtionet.TapOptions{Name: "one", Create: true})
	defer func() { assert.NoError(t, tap.Close()) }()
	host := newHostSide(t, "one")
	require.NoError(t, tap.Start(0))
	buf := make([]byte, 2000)
	next := func(bufs ...[]byte) (int, error) {
		for {
			ok, err := tap.Wait(0)
			require.NoError(t, err)
			require.True(t, ok)
			n, err := tap.Receive(0, bufs)
			// Which buffer a frame's type is in depends on their sizes.
			if err == nil && binary.BigEndian.Uint16(slices.Concat(bufs...)[24:]) != testType {
				continue // the kernel's own
			}
			return n, err
		}
	}
	for n, err := tap.Receive(0, [][]byte{buf}); n > 0; n, err = tap.Receive(0, [][]byte{buf}) {
		require.NoError(t, err)
	}
	for _, room := range [][][]byte{{buf[:100]}, {buf[:500], buf[:511]}, {buf[:5]}, {}, {nil, buf[:1011]}} {
		host.send(testFrame(1000, 1))
		_, err := next(room...)
		require.ErrorIs(t, err, virtionet.ErrTooLong)
	}
	host.send(testFrame(1000, 1))
	n, err := next(buf[:500], nil, buf[500:1012])
	require.NoError(t, err)
	assert.Equal(t, 1012, n)
	assert.Equal(t, testFrame(1000, 1), buf[12:1012])
	tap.Stop()
	ok, err := tap.Wait(0)
	assert.NoError(t, err)
	assert.False(t, ok)
	host.send(testFrame(1000, 1))
	n, err = tap.Receive(0, [][]byte{buf})
	assert.NoError(t, err)
	assert.Zero(t, n, "stopped")
}

// TestTapErrors: what is wrong is said in a line, with what mends it.
func TestTapErrors(t *testing.T) {
	namespace(t)
	ip(t, "tuntap add dev one mode tap")
	ip(t, "tuntap add dev tun0 mode tun")
	ip(t, "link add dummy0 type bridge")
	busy := openTap(t, virtionet.TapOptions{Name: "one"})
	assert.False(t, busy.IsUp())
	ip(t, "tuntap add dev two mode tap")
	ip(t, "tuntap add dev many mode tap multi_queue")
	shared := openTap(t, virtionet.TapOptions{Name: "many", Pairs: 2})
	for _, tc := range []struct {
		name string
		o    virtionet.TapOptions
		is   error
		say  string
	}{
		{"no such tap", virtionet.TapOptions{Name: "none"}, virtionet.ErrNoTap, "tap none: there is no such interface: sudo ip tuntap add dev none mode tap user 0 makes one"},
		{"no such tap of many", virtionet.TapOptions{Name: "none", Pairs: 2}, virtionet.ErrNoTap, "ip tuntap add dev none mode tap user 0 multi_queue"},
		{"in use", virtionet.TapOptions{Name: "one"}, virtionet.ErrTapBusy, "tap one: the tap is in use"},
		{"in use, and to be made", virtionet.TapOptions{Name: "one", Create: true}, virtionet.ErrTapBusy, ""},
		{"one of many queues in use", virtionet.TapOptions{Name: "many"}, virtionet.ErrTapBusy, "tap many: the tap is in use"},
		{"many queues in use", virtionet.TapOptions{Name: "many", Pairs: 3}, virtionet.ErrTapBusy, ""},
		{"a tun", virtionet.TapOptions{Name: "tun0"}, virtionet.ErrNotTap, "tap tun0: the interface is no tap"},
		{"a bridge", virtionet.TapOptions{Name: "dummy0"}, virtionet.ErrNotTap, ""},
		{"the loopback", virtionet.TapOptions{Name: "lo", Pairs: 2}, virtionet.ErrNotTap, ""},
		{"one queue for many", virtionet.TapOptions{Name: "two", Pairs: 2}, virtionet.ErrTapSingleQueue, "multi_queue"},
		{"no name", virtionet.TapOptions{}, virtionet.ErrTapName, `tap ""`},
		{"too long a name", virtionet.TapOptions{Name: "sixteen-letters!"}, virtionet.ErrTapName, `1 to 15`},
		{"a slash", virtionet.TapOptions{Name: "a/b"}, virtionet.ErrTapName, ""},
		{"a pattern", virtionet.TapOptions{Name: "tap%d", Create: true}, virtionet.ErrTapName, ""},
		{"a line", virtionet.TapOptions{Name: "a\nb"}, virtionet.ErrTapName, `"a\nb"`},
		{"too many pairs", virtionet.TapOptions{Name: "two", Pairs: 100}, nil, "1 to 64"},
		{"negative pairs", virtionet.TapOptions{Name: "two", Pairs: -1}, nil, "1 to 64"},
	} {
		files := openFiles(t)
		_, err := virtionet.OpenTap(tc.o)
		require.Error(t, err, tc.name)
		if tc.is != nil {
			require.ErrorIs(t, err, tc.is, tc.name)
		}
		assert.ErrorContains(t, err, tc.say, tc.name)
		assert.NotContains(t, err.Error(), "\n", tc.name)
		assert.Equal(t, files, openFiles(t), tc.name)
	}
	_, err := stdnet.InterfaceByName("none")
	assert.Error(t, err)
	assert.NoError(t, shared.Close())
	assert.NoError(t, busy.Close())
	assert.NoError(t, busy.Close(), "again")
	busy = openTap(t, virtionet.TapOptions{Name: "one"})
	assert.NoError(t, busy.Close())
}

// TestTapPermission: an unprivileged user may neither make a tap nor use one of
// another user, and may use its own.
func TestTapPermission(t *testing.T) {
	namespace(t)
	was, err := os.Stat("/dev/net/tun")
	require.NoError(t, err)
	if err := os.Chmod("/dev/net/tun", 0o666); err != nil {
		t.Skip("the tap device is not for everybody: ", err)
	}
	defer func() { assert.NoError(t, os.Chmod("/dev/net/tun", was.Mode().Perm())) }()
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(ns)
	ip(t, "tuntap add dev roots mode tap user 0")
	ip(t, "tuntap add dev mine mode tap user 54321")
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Of this thread alone, which ends with the goroutine, as does its namespace.
		runtime.LockOSThread()
		if !assert.NoError(t, unix.Setns(ns, unix.CLONE_NEWNET)) {
			return
		}
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 54321, 54321, 54321)
		assert.Zero(t, errno)
		_, err := virtionet.OpenTap(virtionet.TapOptions{Name: "roots"})
		assert.ErrorIs(t, err, virtionet.ErrTapPermission)
		assert.ErrorContains(t, err, "ip tuntap add dev roots mode tap user")
		_, err = virtionet.OpenTap(virtionet.TapOptions{Name: "fresh", Create: true})
		assert.ErrorIs(t, err, virtionet.ErrTapPermission)
		assert.ErrorContains(t, err, "CAP_NET_ADMIN: sudo ip tuntap add dev fresh mode tap user")
		_, err = virtionet.OpenTap(virtionet.TapOptions{Name: "fresh"})
		assert.ErrorIs(t, err, virtionet.ErrNoTap)
		tap, err := virtionet.OpenTap(virtionet.TapOptions{Name: "mine"})
		if assert.NoError(t, err) {
			assert.NoError(t, tap.Close())
		}
	}()
	<-done
}

func openFiles(t testing.TB) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(files)
}

// TestTapOffloads: segments pass whole, both ways and between two guests: TCP and, where
// the kernel has it, UDP, over IPv4 and IPv6.
func TestTapOffloads(t *testing.T) {
	namespace(t)
	tap := openTap(t, virtionet.TapOptions{Name: "one", Create: true})
	assert.Equal(t, uint64(allOffloads)&^usoFeatures, tap.Features()&^usoFeatures)
	t.Logf("USO: %v", tap.Features()&usoFeatures == usoFeatures)
	other := openTap(t, virtionet.TapOptions{Name: "two", Create: true})
	ip(t, "link add br0 type bridge")
	for _, words := range []string{"link set one master br0", "link set two master br0", "link set br0 up"} {
		ip(t, words)
	}
	a := attach(t, virtiotest.OpenMMIO, tap, virtionet.Options{MAC: virtionet.StableMAC("a")}, 0)
	b := attach(t, virtiotest.OpenPCI, other, virtionet.Options{}, 0)
	for _, n := range []nic{a, b} {
		n.onlyTest()
	}
	bufs := b.post(0, slices.Repeat([]int{1536}, 200)...)
	// A bridge drops until its ports forward.
	probe := testFrame(60, 1)
	b.Until("the bridge forwards", func() bool {
		a.send(0, make([]byte, 12), probe)
		time.Sleep(10 * time.Millisecond)
		return b.dev.Stats().Received > 0
	})
	var all []segments
	for _, kind := range []struct{ v6, udp bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		if kind.udp && tap.Features()&usoFeatures != usoFeatures {
			t.Log("this kernel has no segmented UDP")
			continue
		}
		all = append(all, newSegments(30000, kind.v6, kind.udp))
	}
	for _, s := range all {
		a.send(0, s.h.bytes(), s.frame)
		for {
			got, f := b.got(0, &bufs)
			if bytes.Equal(f, probe) {
				continue
			}
			require.Equal(t, s.frame, f, s.name)
			want := s.h
			want.Buffers = uint16((len(s.frame) + 12 + 1535) / 1536)
			assert.Equal(t, want, header(got), s.name)
			break
		}
	}
	// A guest that takes no segments gets the packets they stand for.
	b.Start(virtionet.FeatureMrgRxBuf | virtio.FeatureIndirectDesc | virtionet.FeatureCtrlVQ | virtionet.FeatureCtrlRx)
	b.onlyTest()
	bufs = b.post(0, slices.Repeat([]int{1536}, 200)...)
	for _, s := range all {
		a.send(0, s.h.bytes(), s.frame)
		var data []byte
		for len(data) < len(s.data()) {
			got, f := b.got(0, &bufs)
			if !bytes.Equal(f[:14], s.frame[:14]) {
				continue
			}
			assert.Equal(t, hdr{Buffers: 1}, header(got), s.name)
			require.LessOrEqual(t, len(f), 1514, s.name)
			require.Equal(t, uint16(0xffff), s.checksum(f), "%s: the checksum of what is at %d", s.name, len(data))
			data = append(data, f[s.h.Len:]...)
		}
		assert.Equal(t, s.data(), data, s.name)
	}
}

const usoFeatures = virtionet.FeatureGuestUSO4 | virtionet.FeatureGuestUSO6 | virtionet.FeatureHostUSO

// segments is a frame that is to be segmented, and the header that says so.
type segments struct {
	name  string
	h     hdr
	frame []byte
}

// newSegments makes one with n bytes of data: the checksums are those of its pseudo header.
func newSegments(n int, v6, udp bool) segments {
	s := segments{name: "TCP", h: hdr{Flags: 1, GSO: 1, Offset: 16}}
	kind, protocol, ipSize, size := uint16(0x0800), byte(6), 20, 20
	if v6 {
		s.h.GSO = 4
		kind, ipSize = 0x86dd, 40
	}
	if udp {
		s.name, s.h.GSO, s.h.Offset = "UDP", 5, 6
		protocol, size = 17, 8
	}
	s.name = fmt.Sprintf("%s over %#x", s.name, kind)
	s.h.Start = uint16(14 + ipSize)
	s.h.Len = s.h.Start + uint16(size)
	s.h.Size = uint16(1500 - ipSize - size)
	f := make([]byte, int(s.h.Len)+n)
	s.frame = f
	copy(f, guestMAC)
	copy(f[6:], virtionet.StableMAC("a"))
	binary.BigEndian.PutUint16(f[12:], kind)
	p := f[14:]
	if v6 {
		p[0], p[6], p[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(p[4:], uint16(size+n))
		copy(p[8:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 1, 16: 0x20, 17: 0x01, 18: 0x0d, 19: 0xb8, 31: 2})
	} else {
		p[0], p[8], p[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(p[2:], uint16(20+size+n))
		copy(p[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
		binary.BigEndian.PutUint16(p[10:], ^onesSum(p[:20], 0))
	}
	l4 := p[ipSize:]
	binary.BigEndian.PutUint16(l4, 1000)
	binary.BigEndian.PutUint16(l4[2:], 2000)
	if udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(8+n))
	} else {
		l4[12], l4[13] = 5<<4, 0x18
	}
	binary.BigEndian.PutUint16(l4[s.h.Offset:], s.pseudo(f))
	for i := range n {
		l4[size+i] = byte(i) ^ byte(i>>8)
	}
	return s
}

// data is what the frame carries.
func (s segments) data() []byte { return s.frame[s.h.Len:] }

// pseudo is the sum over the pseudo header of a frame of this kind.
func (s segments) pseudo(f []byte) uint16 {
	addresses, protocol := f[26:34], uint32(f[23])
	if s.h.Start == 54 {
		addresses, protocol = f[22:54], uint32(f[20])
	}
	return onesSum(addresses, protocol+uint32(len(f))-uint32(s.h.Start))
}

// checksum is 0xffff for a frame of this kind with right checksums.
func (s segments) checksum(f []byte) uint16 {
	if s.h.Start == 34 && onesSum(f[14:34], 0) != 0xffff {
		return 0
	}
	return onesSum(f[s.h.Start:], uint32(s.pseudo(f)))
}

// onesSum adds up 16-bit words in ones' complement, to s.
func onesSum(b []byte, s uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// TestTapStarved: a tap that was full while the driver had no buffers goes on when
// there are some (rule 17).
func TestTapStarved(t *testing.T) {
	namespace(t)
	tap := openTap(t, virtionet.TapOptions{Name: "one", Create: true})
	host := newHostSide(t, "one")
	n := attach(t, virtiotest.OpenMMIO, tap, virtionet.Options{}, 0)
	const flood = 3000 // a tap holds 1000 (its txqueuelen)
	for round := range 3 {
		n.onlyTest()
		numbered := func(i int) []byte {
			f := testFrame(60, 0)
			binary.BigEndian.PutUint32(f[14:], uint32(round*10*flood+i))
			return f
		}
		for i := range flood {
			if _, err := unix.Write(host.fd, numbered(i)); err != nil && !errors.Is(err, unix.ENOBUFS) {
				require.NoError(t, err)
			}
		}
		// What the tap still has it gives in order, and then the link works as before.
		var bufs []virtiotest.Buffer
		for got, next := 0, -1; next < flood; {
			if len(bufs) == 0 {
				bufs = n.post(0, slices.Repeat([]int{128}, 50)...)
				if got > 500 {
					host.send(numbered(flood))
				}
			}
			_, f := n.got(0, &bufs)
			i := int(binary.BigEndian.Uint32(f[14:])) - round*10*flood
			if i < 0 {
				continue // left from the round before
			}
			require.GreaterOrEqual(t, i, next)
			next = i
			got++
		}
		n.Start(0)
	}
}

// TestTapTakenAway: an interface that is deleted under the guest takes the link down,
// and the device lives on; when it is back, so is the link, with what was negotiated.
func TestTapTakenAway(t *testing.T) {
	for _, pairs := range []int{1, 2} {
		t.Run(fmt.Sprint(pairs), func(t *testing.T) {
			namespace(t)
			multi := ""
			if pairs > 1 {
				multi = " multi_queue"
			}
			add := func() {
				ip(t, "tuntap add dev one mode tap"+multi)
				ip(t, "link set one up")
			}
			add()
			tap := openTap(t, virtionet.TapOptions{Name: "one", Pairs: pairs})
			n := attach(t, virtiotest.OpenPCI, tap, virtionet.Options{}, 0)
			n.onlyTest()
			if pairs > 1 {
				require.Zero(t, n.command(4, 0, byte(pairs), 0))
			}
			works := func() {
				t.Helper()
				host := newHostSide(t, "one")
				for p := range pairs {
					f := testFrame(60, byte(p))
					n.send(p, make([]byte, 12), f)
					require.Equal(t, f, host.receive())
				}
				unix.Close(host.fd)
				host.fd = -1
			}
			works()
			for round := range 3 {
				irqs := n.ConfigIRQ.Count()
				n.post(0, slices.Repeat([]int{1536}, 20)...) // a starved one looks at buffers only
				ip(t, "link del one")
				if round == 1 { // noticed by sending, if not before
					n.send(0, make([]byte, 12), testFrame(60, 0))
				}
				n.ConfigIRQ.Wait(t, irqs)
				n.Until("the link is down", func() bool { return n.config().Status&1 == 0 })
				n.send(0, make([]byte, 12), testFrame(60, 0))
				if round == 2 { // a guest that resets meanwhile
					n.Start(0)
					n.onlyTest()
					if pairs > 1 {
						require.Zero(t, n.command(4, 0, byte(pairs), 0))
					}
				}
				irqs = n.ConfigIRQ.Count()
				if round == 1 { // somebody else takes it first
					thief := openTap(t, virtionet.TapOptions{Name: "one", Pairs: pairs, Create: true})
					time.Sleep(1200 * time.Millisecond)
					assert.Zero(t, n.config().Status&1)
					require.NoError(t, thief.Close())
				}
				add()
				n.ConfigIRQ.Wait(t, irqs)
				n.Until("the link is up", func() bool { return n.config().Status&1 != 0 })
				works()
				if pairs == 1 {
					before := n.dev.Stats().Received
					n.post(0, 1536)
					host := newHostSide(t, "one")
					host.send(testFrame(100, 1))
					n.Until("a frame is received", func() bool { return n.dev.Stats().Received > before })
				}
			}
			ip(t, "link del one")
			require.NoError(t, n.Function.Close(patient(t)))
			require.NoError(t, n.dev.Close())
		})
	}
}
