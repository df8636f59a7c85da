package block

import "github.com/vole-vmm/vole/virtio"

// NewWithClock is New with a time of the test's own, for rate limits and log
// lines.
func NewWithClock(img Image, o Options, clock virtio.Clock) (*Device, error) {
	return newDevice(img, o, clock)
}
