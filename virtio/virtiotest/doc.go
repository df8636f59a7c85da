// Package virtiotest is a virtio driver for tests: it drives a device through
// the registers of either transport, as a guest's driver does, and can also
// misbehave in every way that a guest can.
//
// A test is written once and runs over both transports:
//
//	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
//		d := open(t, dev)
//		d.Start(0)
//		head := d.Queues[0].Add(d.Out(request), d.In(16))
//		d.Queues[0].Kick()
//		used := d.Queues[0].Next()
//		...
//	})
//
// Guest RAM is an ordinary byte slice. Every wait is bounded and fails the test.
package virtiotest
