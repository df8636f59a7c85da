package guests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// driven is a driver, without a guest, of a device whose frames the host's kernel moves.
type driven struct {
	*virtiotest.Driver
	t    testing.TB
	dev  *virtionet.Device
	mac  net.HardwareAddr
	host *net.UDPConn
	rx   map[uint32]virtiotest.Buffer // by head
}

const drivenTap = "tap9"

var (
	hostIP   = net.IPv4(10, 9, 9, 1).To4()
	drivenIP = net.IPv4(10, 9, 9, 2).To4()
)

// start sets the queues up and makes buffers available.
func (d *driven) start() {
	d.Start(0)
	d.rx = map[uint32]virtiotest.Buffer{}
	for range 64 {
		d.post()
	}
	d.Queues[0].Kick()
}

func (d *driven) post() {
	b := d.In(1526)
	d.rx[uint32(d.Queues[0].Add(b))] = b
}

// frame sends one of the given type, to everybody.
func (d *driven) frame(kind uint16, payload []byte) {
	f := bytes.Repeat([]byte{0xff}, 6)
	f = append(f, d.mac...)
	f = binary.BigEndian.AppendUint16(f, kind)
	f = append(f, payload...)
	d.Queues[1].Add(d.Out(make([]byte, virtionet.HeaderSize)), d.Out(f))
	d.Queues[1].Kick()
}

// introduce tells the host where the driver's address is (ARP).
func (d *driven) introduce() {
	p := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	p = append(append(p, d.mac...), drivenIP...)
	p = append(append(p, make([]byte, 6)...), hostIP...)
	d.frame(0x0806, p)
	d.Queues[1].Next()
}

// datagram sends one to the host's socket.
func (d *driven) datagram(payload []byte) {
	udp := binary.BigEndian.AppendUint16(nil, 7777)
	udp = binary.BigEndian.AppendUint16(udp, uint16(d.host.LocalAddr().(*net.UDPAddr).Port))
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	ip = append(append(ip, drivenIP...), hostIP...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	d.frame(0x0800, append(ip, udp...))
}

// received takes what has come since the last call and counts the host's datagrams that
// say word.
func (d *driven) received(word string) (n int) {
	for {
		u, ok := d.Queues[0].Poll()
		if !ok {
			d.Queues[0].Kick()
			return n
		}
		b, known := d.rx[u.Head]
		require.True(d.t, known, "a buffer that the device had not got")
		delete(d.rx, u.Head)
		if f := d.Bytes(b)[:u.Len]; bytes.HasSuffix(f, []byte(word)) {
			n++
		}
		d.rx[uint32(d.Queues[0].Add(b))] = b
	}
}

// exchange has datagrams go both ways.
func (d *driven) exchange(word string) {
	d.t.Helper()
	d.introduce()
	for i := range 20 {
		said := fmt.Sprintf("%s %d", word, i)
		d.datagram([]byte(said))
		got := make([]byte, 2000)
		require.NoError(d.t, d.host.SetReadDeadline(time.Now().Add(virtiotest.Patience)))
		n, err := d.host.Read(got)
		require.NoError(d.t, err, said)
		require.Equal(d.t, said, string(got[:n]))
		d.Queues[1].Next()
		require.NoError(d.t, d.tell(said))
		d.Until("the answer has come: "+said, func() bool { return d.received(said) > 0 })
	}
}

// tell sends a datagram to the driver.
func (d *driven) tell(word string) error {
	_, err := d.host.WriteToUDP([]byte(word), &net.UDPAddr{IP: drivenIP, Port: 7777})
	return err
}

func (d *driven) still(why string) {
	d.t.Helper()
	before := d.Snapshot()
	time.Sleep(20 * time.Millisecond) // in which much would come
	require.True(d.t, bytes.Equal(before, d.Snapshot()), why)
}

// say logs where a test that failed stands.
func (d *driven) say() {
	if !d.t.Failed() {
		return
	}
	for _, q := range d.Queues[:2] {
		d.t.Logf("queue %d: available %d, used %d, to be notified of %d", q.Index, q.Available(), q.UsedIndex(), q.AvailEvent())
	}
	d.t.Log(busybox(d.t, "ip", "neigh"), d.dev.Counters())
}

func (d *driven) linkUp() bool {
	var b [1]byte
	d.Regs.ReadConfig(6, b[:])
	return b[0]&1 != 0
}

// TestVHostDriver: the kernel's vhost-net under a driver that does what a guest would not,
// on both transports: pauses and resets in the middle of traffic, a broken ring, and a tap
// that goes.
func TestVHostDriver(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	ownNetwork(t)
	makeTap := func() {
		busybox(t, "tunctl", "-t", drivenTap)
		ip(t, "addr add 10.9.9.1/24 dev "+drivenTap+"\nlink set "+drivenTap+" up")
		// Nobody answers the host's question whether the driver is still there.
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/neigh/"+drivenTap+"/delay_first_probe_time", []byte("3600"), 0o644))
	}
	for _, open := range []virtiotest.Opener{virtiotest.OpenMMIO, virtiotest.OpenPCI} {
		makeTap()
		host, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero})
		require.NoError(t, err)
		backend, err := virtionet.OpenVHost(virtionet.TapOptions{Name: drivenTap})
		require.NoError(t, err)
		_, err = virtionet.OpenVHost(virtionet.TapOptions{Name: drivenTap})
		require.ErrorIs(t, err, virtionet.ErrTapBusy)
		dev, err := virtionet.New(backend, virtionet.Options{})
		require.NoError(t, err)
		d := &driven{Driver: open(t, dev), t: t, dev: dev, mac: dev.MAC(), host: host}
		defer d.say()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		d.start()
		d.exchange("at first")

		// A flood from here on, but for those who wait.
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				default:
					_ = d.tell("flood")
					time.Sleep(100 * time.Microsecond) // the others need a CPU too
				}
			}
		}()
		for round := range 30 {
			for range 20 {
				d.received("flood")
			}
			require.NoError(t, d.Function.Pause(ctx))
			d.received("flood")
			d.still("a paused device")
			for i, q := range d.Function.State().Queues[:2] {
				require.Equal(t, d.Queues[i].UsedIndex(), q.NextUsed, "round %d, queue %d", round, i)
				require.Equal(t, q.NextUsed, q.NextAvail, "round %d, queue %d", round, i)
			}
			d.Function.Resume()
			d.Until("it goes on", func() bool { return d.received("flood") > 0 })
		}
		for range 10 {
			d.Reset()
			d.still("a device that was reset")
			d.start()
			d.introduce()
			d.Until("it goes on", func() bool { return d.received("flood") > 0 })
		}
		d.Reset()
		close(stop)
		<-ended
		d.start()
		d.exchange("after resets")

		// A head that there is not.
		d.Queues[1].Publish(9999)
		d.Regs.Notify(1)
		d.NeedsReset()
		d.start()
		d.exchange("after a broken ring")

		ip(t, "link del "+drivenTap)
		d.Until("the link is down", func() bool { return !d.linkUp() })
		d.frame(0x88b5, make([]byte, 60)) // it waits
		makeTap()
		d.Until("the link is up", d.linkUp)
		d.Queues[1].Next()
		d.exchange("with another tap")
		assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset)

		assert.Equal(t, 1, vhostFiles(t, os.Getpid()))
		require.NoError(t, d.Function.Close(ctx))
		cancel()
		d.still("a device that is closed")
		require.NoError(t, dev.Close())
		assert.Zero(t, vhostFiles(t, os.Getpid()))
		require.NoError(t, host.Close())
		ip(t, "link del "+drivenTap)
	}
	_, err := virtionet.OpenVHost(virtionet.TapOptions{Name: drivenTap})
	assert.True(t, errors.Is(err, virtionet.ErrNoTap), err)
	assert.Zero(t, vhostFiles(t, os.Getpid()))
}
