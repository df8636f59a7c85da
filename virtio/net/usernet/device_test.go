package usernet_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/net/usernet"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

var guestMAC = virtionet.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}

// card is a guest's driver of a network device.
type card struct {
	*virtiotest.Driver
	t    *testing.T
	bufs []virtiotest.Buffer
}

func (c *card) start() {
	c.t.Helper()
	c.Start(virtio.FeatureVersion1 | virtionet.FeatureMAC | virtionet.FeatureMTU | virtionet.FeatureCsum)
	c.bufs = nil
	for range 16 {
		b := c.In(virtionet.HeaderSize + 1514)
		c.Queues[0].Add(b)
		c.bufs = append(c.bufs, b)
	}
	c.Queues[0].Kick()
}

func (c *card) send(frame []byte) {
	c.t.Helper()
	c.Queues[1].Add(c.Out(make([]byte, virtionet.HeaderSize)), c.Out(frame))
	c.Queues[1].Kick()
	c.Queues[1].Next()
}

func (c *card) next() []byte {
	c.t.Helper()
	u := c.Queues[0].Next()
	require.NotEmpty(c.t, c.bufs)
	b := c.Bytes(c.bufs[0])[:u.Len]
	c.bufs = c.bufs[1:]
	require.Greater(c.t, len(b), virtionet.HeaderSize)
	return b[virtionet.HeaderSize:]
}

// TestUnderTheDevice lets a driver ask for the gateway, on both transports, and
// again after a reset; a listener lives through it.
func TestUnderTheDevice(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		conf := filepath.Join(t.TempDir(), "none")
		n, err := usernet.New(usernet.Options{MTU: 1500, ResolvConf: conf, HostsFile: conf, Policy: usernet.DenyOutside})
		require.NoError(t, err)
		dev, err := virtionet.New(n, virtionet.Options{MAC: guestMAC, Pairs: 1})
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, dev.Close()) })
		l, err := n.Listen("tcp", "gateway:80")
		require.NoError(t, err)
		c := &card{Driver: open(t, dev), t: t}
		for range 3 {
			c.start()
			request := append(append(bytes.Repeat([]byte{0xff}, 6), guestMAC...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
			request = append(append(request, guestMAC...), 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2)
			c.send(request)
			answer := c.next()
			assert.Equal(t, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, answer[12:22])
			assert.Equal(t, []byte{10, 0, 2, 2}, answer[28:32])

			// A SYN whose sum the device is left to finish finds the listener.
			syn := append(append([]byte{}, answer[6:12]...), guestMAC...)
			syn = append(syn, 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2)
			sum := uint32(0)
			for i := 14; i < 34; i += 2 {
				sum += uint32(binary.BigEndian.Uint16(syn[i:]))
			}
			sum = sum&0xffff + sum>>16
			binary.BigEndian.PutUint16(syn[24:], ^uint16(sum+sum>>16))
			syn = append(syn, 0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0)
			c.send(syn)
			answer = c.next()
			assert.Equal(t, []byte{0, 80, 0x10, 0}, answer[34:38])
			assert.Equal(t, byte(0x12), answer[47], "SYN and ACK")
			c.Reset()
		}
		require.NoError(t, l.Close())
	})
}

// Example shows a program that serves the guest inside of its network: nothing
// of this is on the host's.
func Example() {
	n, err := usernet.New(usernet.Options{Policy: usernet.DenyOutside})
	if err != nil {
		return
	}
	defer n.Close()
	l, err := n.Listen("tcp", "gateway:80")
	if err != nil {
		return
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_, _ = io.WriteString(c, "hello, guest\n")
			}(c)
		}
	}()
	// The guest finds it at port 80 of 10.0.2.2 once n has its device.
	dev, err := virtionet.New(n, virtionet.Options{})
	if err != nil {
		return
	}
	defer dev.Close()
}
