import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from fer_lightning.model.depthwise import DepthwiseConv2d, replace_depthwise


@pytest.mark.parametrize(("kernel", "shape"), [(3, (2, 2)), (3, (1, 1)), (5, (2, 2)), (5, (4, 3))])
def test_gradients_are_those_of_the_plain_convolution(kernel: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=6, bias=False).double()
    images = torch.randn(5, 6, *shape, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(5, 6, *shape, dtype=torch.float64)

    def of(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output, (images, layer.weight), gradient)

    plain = of(F.conv2d(images, layer.weight, padding=kernel // 2, groups=6))
    replace_depthwise(nn.Sequential(layer))
    output = layer(images)
    assert type(output.grad_fn).__name__ == "_ConvolveBackward"
    torch.testing.assert_close(of(output), plain)


def test_only_training_on_small_images_in_float32_takes_the_other_gradient() -> None:
    layer = DepthwiseConv2d(6, 6, 3, padding=1, groups=6, bias=False)

    def way(size: int) -> str:
        return type(layer(torch.randn(1, 6, size, size)).grad_fn).__name__

    assert (way(2), way(3)) == ("_ConvolveBackward", "ConvolutionBackward0")
    with torch.autocast("cpu", torch.bfloat16):
        assert way(2) == "ConvolutionBackward0"
    layer.eval()
    assert way(2) == "ConvolutionBackward0"


def test_a_network_keeps_its_parameters_and_its_other_convolutions() -> None:
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnetv2_b0", in_chans=1)
    before = list(network.state_dict())
    replace_depthwise(network)
    assert before == list(network.state_dict())
    replaced = [module for module in network.modules() if isinstance(module, DepthwiseConv2d)]
    assert len(replaced) == 14
    assert all(module.groups == module.in_channels and module.stride == (1, 1) for module in replaced)
