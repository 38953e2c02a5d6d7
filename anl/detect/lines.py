"""From paths to the lines of a report: pictures are read ahead in threads while crops are scored."""

from anl.data.decode import Refused, decode_bytes, read_bytes
from anl.detect import inputs, report
from anl.detect.crops import mirrored


def score(detector, wanted, batch_size, workers, maps_to=None):
    """Yield report lines in the order of `wanted`, (path, reason why it is not read or None) pairs.

    detector: ImageDetector. batch_size: crops at once; workers: reading threads. maps_to: a folder that gets a drawing of
    each picture (anl.detect.maps), or None. Memory holds a few pictures and a batch of crops, however many are wanted.
    """
    if maps_to:
        from anl.detect import maps  # not above: it brings matplotlib, which a first score need not wait for

    def read(item):
        path, reason = item
        if reason is not None:
            raise Refused(reason)
        pixels = decode_bytes(read_bytes(path))
        return detector.tile(pixels), maps.overview(mirrored(pixels, detector.card.size)) if maps_to else None

    def pictures():
        # as many ahead as a batch may take, so that the next one is there when this one is scored
        for (path, _), found in inputs.read_ahead(wanted, read, workers, batch_size):
            if isinstance(found, Refused):
                yield (path, str(found)), None
                continue
            tiled, small = found
            if maps_to:
                maps.write(maps_to, path, maps.draw(detector, tiled, small))
            yield (path, None), tiled

    for (path, error), found in detector.stream(pictures(), batch_size):
        yield report.row(path, found, error, detector.card.identity)
