package net_test

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestTapTrafficAndLife: pause, reset, close and the interface taken away while frames
// come and go through a tap: a guest that stands still is left alone, and nothing is
// left behind.
func TestTapTrafficAndLife(t *testing.T) {
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
			files, goroutines := openFiles(t), runtime.NumGoroutine()
			for round := range 8 {
				tap := openTap(t, virtionet.TapOptions{Name: "one", Pairs: pairs})
				dev, err := virtionet.New(tap, virtionet.Options{MAC: guestMAC})
				require.NoError(t, err)
				open := []virtiotest.Opener{virtiotest.OpenMMIO, virtiotest.OpenPCI}[round%2]
				n := nic{Driver: open(t, dev), t: t, dev: dev}
				n.Start(0)
				n.onlyTest()
				if pairs > 1 {
					require.Zero(t, n.command(4, 0, byte(pairs), 0))
				}
				host := newHostSide(t, "one")
				stop, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						f := testFrame(60+i%1400, byte(i))
						f[6+5] = byte(i) // another flow
						_, _ = unix.Write(host.fd, f)
					}
				}()
				room := [2][]virtiotest.Buffer{}
				out := n.Out(incoming(testFrame(900, 1)))
				for p := range pairs {
					room[p] = n.post(p, slices.Repeat([]int{1536}, 200)...)
				}
				for step := range 200 {
					p := step % pairs
					if _, ok := n.tx(p).Poll(); ok || step < 100 {
						n.tx(p).Add(out)
						n.tx(p).Kick()
					}
					for {
						if _, ok := n.rx(p).Poll(); !ok {
							break
						}
						n.rx(p).Add(room[p][step])
					}
					n.rx(p).Kick()
					switch {
					case step == 60:
						require.NoError(t, n.Function.Pause(patient(t)))
						before := n.Snapshot()
						time.Sleep(2 * time.Millisecond)
						require.True(t, bytes.Equal(before, n.Snapshot()), "a paused guest")
						n.Function.Resume()
					case step == 120 && round%4 == 1:
						n.Start(0)
						for p := range pairs {
							room[p] = n.post(p, slices.Repeat([]int{1536}, 200)...)
						}
					case step == 150 && round%4 >= 2:
						ip(t, "link del one")
					}
				}
				if round%4 == 3 {
					n.Until("the link is down", func() bool { return n.config().Status&1 == 0 })
				}
				if round%2 == 0 {
					n.Reset()
				}
				require.NoError(t, n.Function.Close(patient(t)))
				before := n.Snapshot()
				time.Sleep(time.Millisecond)
				require.True(t, bytes.Equal(before, n.Snapshot()), "a guest that is closed")
				require.NoError(t, dev.Close())
				close(stop)
				<-ended
				unix.Close(host.fd)
				host.fd = -1
				if round%4 >= 2 {
					add()
				}
			}
			// The one more is that of Eventually.
			assert.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+1 }, virtiotest.Patience, 10*time.Millisecond, "goroutines")
			// Function.Close closes the doorbells; the rest is the tap's.
			assert.LessOrEqual(t, openFiles(t), files+1)
		})
	}
}
